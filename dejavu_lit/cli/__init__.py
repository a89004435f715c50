"""The commands, one file each, and the frame around them (app)."""
