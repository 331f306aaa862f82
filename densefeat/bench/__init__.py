"""How fast the network runs on this machine: our engines beside what else one would use, on the same weights."""
