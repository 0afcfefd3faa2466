"""Who is in the mesh and who is alive: SWIM (Das, Gupta, Motivala 2002) with Lifeguard (Dadgar et al. 2017)."""
