"""What happens when something goes wrong that nobody wanted: each fault done for real, with its outcome stated."""
