"""What holds for every test: a property's examples may take their time, and Ctrl-C reaches the processes started."""

import signal

from hypothesis import settings

# On top of the profile in force, which Hypothesis chooses by the machine (with CI set: the same examples every time).
settings.register_profile("unhurried", settings(), deadline=None)
settings.load_profile("unhurried")

# A shell starts background jobs deaf to Ctrl-C, and their children inherit that: then nothing would end on SIGINT.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
