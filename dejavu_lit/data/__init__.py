"""Pairs on disk: shards, splits, readers of what users have, and the epoch plan that says who sees what when."""
