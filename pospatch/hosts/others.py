"""What is neither text, image nor sound: trajectories."""

from pospatch.hosts._base import Host

__all__ = ["OTHERS"]

OTHERS: tuple[Host, ...] = (
    Host(
        wiring="decision transformer",
        families=("decision_transformer",),
        table=("embed_timestep",),
        steps="timesteps",
        note="positions are the time steps given with the call; return, state and action of a step share one",
    ),
)
