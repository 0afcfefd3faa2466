"""Taking part in the mesh: the pure core's datagrams, streams and timers, joining, and the memory of members."""
