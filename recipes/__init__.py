"""Complete recipes, one a job."""
