"""Where jobs run: the contract in ``base``, one module for each kind of executor."""
