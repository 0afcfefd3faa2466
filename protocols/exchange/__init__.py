"""Which chunks travel between whom: sessions of have, want and cancel, and the picker that decides what to ask next."""
