"""What every room uses: errors, files, processes, configuration, run directories."""
