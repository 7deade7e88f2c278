"""What is neither text, image nor sound: trajectories and time series."""

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
    Host(
        wiring="time series",
        families=("time_series_transformer",),
        table=("embed_positions",),
        note="the table counts on from the encoder's last step in the decoder; a step is one value with its features",
    ),
    Host(wiring="patchtst", families=("patchtst",), table=("position_enc",), note="a row for each patch of a series"),
    Host(
        wiring="timesfm",
        families=("timesfm",),
        hushed=("position_emb",),
        order="patches of a series, padded on the left",
        note="sines are made anew for each call, and zeroed where they are cleared",
    ),
    Host(wiring="timesfm, rotary", families=("timesfm2_5",), order="patches of a series, padded on the left"),
)
