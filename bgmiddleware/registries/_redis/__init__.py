"""What the registry in Redis is made of: the way to a server, the records there, and their index."""
