"""What holds for every test: a property's examples may take as long as a busy machine needs."""

from hypothesis import settings

# On top of the profile in force, which Hypothesis chooses by the machine (with CI set: the same examples every time).
settings.register_profile("unhurried", settings(), deadline=None)
settings.load_profile("unhurried")
