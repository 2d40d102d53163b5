"""What the commands do, as library calls: no printing here, no arithmetic in the command line."""
