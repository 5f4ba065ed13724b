# SPDX-License-Identifier: MIT
"""Recipes: plain dicts. Each key is one of layers.DEFAULTS, mix.DEFAULTS, loss weights, or train's own below."""

COMMON = dict(
    name="denoise-16k", minutes=24.0, lr=2e-3, lr_floor=2e-6, warmup=400, betas=(0.9, 0.99), weight_decay=0.02,
    ema=0.9995, qat=0.1,    # qat: the last share of the time trains through int8-rounded weights
    seed=1, scan="auto", compile=True, graph=True,
    log_seconds=10.0, save_seconds=60.0, validate_seconds=120.0, poll_steps=200,
    speech_hours=36.0, noise_hours=18.0, narrow=1.0,
    plain=())               # pieces of the model and the loss that aren't compiled

# long crops, with long pauses and silence at the beginning
PATIENT = dict(COMMON, seconds=26.88, lr=8e-4, warmup=200, ema=0.999, qat=0.3, paused=0.4, pause_seconds=25.0, silent=0.2)

# denoise-16k-large's and what it teaches: crops half as long, clean speech counted more, noise varied more
FAITHFUL = dict(PATIENT, n_layer=5, minutes=14.0, batch=20, seconds=13.44, pause_seconds=11.0, lr=5e-4, qat=0.15, speed=0.16,
                second=0.6, paused=0.3, silent=0.15, clean_only=0.2, noise_moving=0.4, noise_starts=0.2, noise_octaves=0.25,
                backwards=0.4, audible=0.18, judged=0.065, snr=0.035, begun=0.4, faithful=1.0, plain=("decode",))

# denoise-48k's
FULL_BAND = dict(PATIENT, name="denoise-48k", rate=48000, window=960, hop=480, n_layer=5, minutes=14.0, batch=16, seconds=13.44,
                 pause_seconds=11.0, speech_hours=12.4, noise_hours=8.0, narrow=0.18, lr=6e-4, qat=0.25, paused=0.3, silent=0.15,
                 clean_only=0.15, speed=0.16, second=0.6, noise_moving=0.4, noise_starts=0.2, audible=0.14, judged=0.055, snr=0.04,
                 begun=0.5, crisp=0.01, plain=("decode", "crisp"))
# the later ones of 48 kHz: clean speech and what is audible counted more
WIDE = dict(FULL_BAND, lr=5e-4, qat=0.15, clean_only=0.25, audible=0.2, judged=0.06, snr=0.045, faithful=2.0)

# half taught, and clean speech keeps the floor of its room: noise at 33 dB and more below speech stays
FLOOR = dict(WIDE, taught=0.5, clean_only=0.3125, floor=0.6, snr_high=30.0, faithful=4.0, audible=0.27, snr=0.06)

# speech keeps its own rumble, which teachers don't; a constant, which lies in the same bins, comes more often
RUMBLE = dict(taught_from=80.0, rumble=(8.0, 20.0), offset=0.25)

RECIPES = {
    # from nothing: version 1 was its six layers
    "denoise-16k": dict(COMMON, n_layer=5, minutes=18.0, lr=1.6e-3, qat=0),
    # its second half, from the first's ema.pt by --init: long crops, so that the slow states meet what hours of audio
    # do to them, through int8-rounded weights
    "denoise-16k-long": dict(COMMON, n_layer=5, minutes=4.0, seconds=17.92, batch=32, lr=3e-4, warmup=50, ema=0.998,
                             qat=1.0),
    # version 2: from version 1 by --init without its layer 2 (--keep 0 1 3 4 5), which it misses least: 0.5 dB before
    # any training. One length of crop, so that int8 rounding is the only thing that changes on the way.
    "denoise-16k-again": dict(COMMON, n_layer=5, minutes=14.0, seconds=8.96, batch=64, lr=8e-4, warmup=200, ema=0.999,
                              qat=0.3),
    # version 3: from version 2 by --init. Crops long enough for what version 2 had never met and answered by muting the
    # next second of speech: half a minute without any, in noise, in a quiet room or in digital silence
    "denoise-16k-pauses": dict(PATIENT, n_layer=5, minutes=12.0, batch=20, lr=6e-4),
    # versions 4 to 6: from the one before by --init, judged by DNSMOS too (--judge); denoise-16k.md has their settings
    "denoise-16k-judged": dict(PATIENT, n_layer=5, minutes=8.0, batch=20, lr=6e-4, paused=0.3, silent=0.15, audible=0.08,
                               judged=0.03),
    # for a GPU: denoise-16k's window, but twice as often, so every sample is in four windows instead of two; as much delay,
    # twice the computing. By --init from a denoise-16k, which it begins as: two of it on hops of their own (warm.finer).
    # Twice as wide instead was no gain, see TRIED.md
    "denoise-16k-large": dict(FAITHFUL, name="denoise-16k-large", hop=80, d_conv=7, taps=5),
    # the small one taught by the large (--teacher denoise-16k-large.safetensors), half by it and half by what is so: no better
    # held out, see TRIED.md
    "denoise-16k-taught": dict(FAITHFUL, taught=0.5),
    # version 7, from version 6 by --init: taught so, but speech keeps its own rumble and a quiet floor
    "denoise-16k-rumble": dict(FAITHFUL, **RUMBLE, batch=12, seconds=26.88, pause_seconds=25.0, taught=0.5, clean_only=0.25,
                               floor=0.5, snr_high=30.0, faithful=1.5, audible=0.2, snr=0.042),
    # 48 kHz: the same blocks at the same hops; bins up to 8 kHz are denoise-16k's, which it starts from by --init. Compiled,
    # its decoder's backward read beyond its memory
    "denoise-48k": FULL_BAND,
    # the same twice as often, as denoise-16k-large; by --init from a denoise-48k. No better held out either
    "denoise-48k-large": dict(WIDE, name="denoise-48k-large", hop=240, d_conv=7, taps=5),
    # version 4 of denoise-48k: below 8 kHz half taught by two (--teacher denoise-16k-large.safetensors denoise-48k.safetensors),
    # whose mean does better there than either; by --init from the mean of a denoise-48k and a denoise-16k's weights
    "denoise-48k-taught": dict(WIDE, taught=0.5),
    # version 5, from version 4 by --init: clean speech keeps its room's floor
    "denoise-48k-floor": FLOOR,
    # version 6, from version 5 by --init: speech keeps its own rumble, too
    "denoise-48k-rumble": dict(FLOOR, **RUMBLE, snr=0.066),
    # 10 ms: half the window, so bins twice as wide; more taps in their stead. From denoise-16k by --init; version 2 went on
    # from version 1 with these settings
    "denoise-16k-low": dict(PATIENT, name="denoise-16k-low", window=160, hop=80, taps=5, n_layer=5, minutes=14.0, batch=16,
                            lr=8e-4, warmup=100, qat=0, speed=0.16, second=0.6, paused=0.3, silent=0.15, clean_only=0.15,
                            noise_moving=0.4, noise_starts=0.2, audible=0.18, judged=0.07, snr=0.032, begun=0.5),
    # a tiny model on the CPU: does the whole road work, from audio to an exported file?
    "smoke": dict(COMMON, name="smoke", minutes=2.0, d_model=32, n_layer=2, dt_rank=2, batch=6, seconds=1.28, lr=4e-3,
                  warmup=20, ema=0.98, rooms=20, room_seconds=0.4, scan="torch", compile=False, graph=False,
                  log_seconds=5.0, save_seconds=30.0, validate_seconds=60.0, poll_steps=50, speech_hours=1.5,
                  noise_hours=1.5),
}
