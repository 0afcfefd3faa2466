"""The node: owns every resource and performs the effects that `protocols` asks for."""
