"""Near neighbours and near duplicates in a store."""
