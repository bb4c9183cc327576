"""Where jobs live until their TTL: the contract in ``base``, one module for each kind of registry."""
