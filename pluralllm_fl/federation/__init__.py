"""The server's round loop, its roster, grid, checks of replies and callbacks; and the node."""
