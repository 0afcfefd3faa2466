"""How many bytes a second chunks may take, for those who wait and those who set it."""
