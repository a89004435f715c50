"""From two models to records: embed, search, write records, measure."""
