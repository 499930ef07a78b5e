"""The daemon: `modelhub watch`. `loop` composes; what it composes are event sources (`modelhub.watch`), scan workers and job
workers. Each of them can die or hang without the daemon doing so."""
