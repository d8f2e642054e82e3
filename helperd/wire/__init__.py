"""What goes over pipes and sockets, parsed and built without I/O."""
