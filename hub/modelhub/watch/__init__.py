"""Where the daemon hears that something happened: events of the kernel, polling, changes of the mount table.

All that comes from here is a hint at a directory worth a look; what is so is found out by a scan.
"""
