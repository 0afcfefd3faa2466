"""Who is let in: today a proof of the mesh key, later certificates and roles at the same doors."""
