"""Studies: many settings trained, evaluated and ranked."""
