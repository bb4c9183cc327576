"""The page and its terminal, in Python and in real browsers."""
