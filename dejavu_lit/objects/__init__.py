"""Objects in pictures: annotators and the parquet artifact they write."""
