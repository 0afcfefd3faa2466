"""The bulk plane: sealed frames on a plain TCP connection, keyed by a ticket that travelled over the control plane."""
