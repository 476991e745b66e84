"""What travels between server and nodes, and every change of an update on the way."""
