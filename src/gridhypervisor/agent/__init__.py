"""What travels to a site: relay, pilot, watchdog, hypervisors, the fork queue; and the recipe of the bundle.

Uses the standard library and `gridhypervisor.model.wire` alone: it runs on the bundle's own Python, in a root that may
hold nothing else.
"""
