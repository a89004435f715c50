"""Objects in images: annotators and the parquet artifact they write."""
