# SPDX-License-Identifier: MIT
"""Noisy and clean pairs, mixed on the device a batch at a time; no loop over items.

mix(pool) -> noisy, clean: (batch, samples). What happens to which item is drawn by position in fresh random
permutations, so every count is fixed, every shape static, and the choices independent of each other. Seed with
torch.manual_seed. All filters are applied by one FFT an item, as zero-phase gains; the target hears the speech's
equaliser, low-pass and high-pass too, and the room's first 50 ms with a shortened tail.

Speech recorded at a lower rate than the mixture's has nothing near its top, which must not teach that speech ends there:
such an item is all of it, noise too, low-passed at what the recording can hold.
"""
import math

import torch

from layers import smooth_length

DEFAULTS = dict(
    batch=128, seconds=4.48,
    speed=0.12,             # speech and noise play up to this much faster or slower, pitch with them
    noise_octaves=0.0,      # noise plays up to this much higher or lower besides
    backwards=0.0,          # share of noises that play from their end
    joined=0.35,            # share of items whose speech changes to another crop on the way
    paused=0.25,            # share with a stretch of silence in the speech
    pause_seconds=2.5,      # at most
    moving=0.20,            # share whose speech gets louder and softer
    reverb=0.35, second=0.5, babble=0.08, synthetic=0.18,
    noise_room=0.25, noise_moving=0.30, noise_starts=0.12,
    clean_only=0.10, noise_only=0.05, clipped=0.05, low_pass=0.20,
    floor=0.0,              # share of the clean items with a noise so quiet that it is to stay: a room's floor
    floor_snr=(33.0, 55.0),
    rumble=(55.0, 80.0),    # Hz: below one between, nothing of nine tenths of the speech is left
    telephone=0.06,         # speech and noise through one 3.3 to 3.9 kHz line
    offset=0.05,            # share with a constant added, up to five times the speech's RMS
    silent=0.0,             # share that begins with silence or next to it, up to three quarters of the item
    snr_low=-5.0, snr_high=35.0, rooms=1200, room_seconds=1.0)

SINC_TAPS, SINC_STEPS = 16, 1024


def sinc_table(device):
    """(SINC_STEPS, SINC_TAPS): Hann-windowed sinc at fractions k / SINC_STEPS between the middle taps."""
    f = torch.arange(SINC_STEPS, dtype=torch.float64)[:, None] / SINC_STEPS
    j = torch.arange(SINC_TAPS, dtype=torch.float64)[None] - (SINC_TAPS // 2 - 1)
    x = f - j
    w = torch.cos(math.pi * x / SINC_TAPS).square() * torch.sinc(x)
    return (w / w.sum(1, keepdim=True)).float().to(device)


# ---- functions of tensors, each one a candidate for torch.compile -----------------------------------------------------

def crop(audio, start, length, begin, rate, table, n):
    """(items, n) samples of files [start, start+length) from begin on, at speed rate/1024; files repeat if short."""
    at = torch.arange(n, device=audio.device)[None] * rate[:, None]
    base, fraction = at >> 10, at & 1023
    out = 0.0
    for k in range(SINC_TAPS):
        where = (begin[:, None] + base + (k - (SINC_TAPS // 2 - 1))) % length[:, None]
        out = out + audio[start[:, None] + where].float() * table[fraction, k]
    return out * (1.0 / 32768.0)


def crop_plain(audio, start, length, begin, rate, n):
    """As crop, by linear interpolation: for noise."""
    at = torch.arange(n, device=audio.device)[None] * rate[:, None]
    base, fraction = at >> 10, (at & 1023).float() * (1.0 / 1024.0)
    a = audio[start[:, None] + (begin[:, None] + base) % length[:, None]].float()
    b = audio[start[:, None] + (begin[:, None] + base + 1) % length[:, None]].float()
    return (a + (b - a) * fraction) * (1.0 / 32768.0)


def equaliser(hz, tilt, gain, centre, width, edge, edge_order, high_pass):
    """(items, bins) gains: a tilt in dB an octave about 1 kHz, peaks (items, 3), a low-pass, a high-pass at Hz."""
    octave = torch.log2(hz.clamp_min(20.0) / 1000.0)[None]
    db = (tilt[:, None] * octave).clamp(-12.0, 12.0)
    for k in range(3):
        db = db + gain[:, k, None] * torch.exp(-0.5 * ((octave - centre[:, k, None]) / width[:, k, None]).square())
    low = 1.0 / (1.0 + (hz[None] / edge[:, None]) ** edge_order[:, None])
    x = (hz[None] / high_pass[:, None]).square().square()
    return torch.exp(db * 0.11512925) * low * (x / (1.0 + x))


def active_blocks(x, block):
    """(items, samples) -> energies (items, blocks), and 1 for the blocks within 40 dB of the loudest."""
    e = x[:, :x.shape[1] // block * block].reshape(x.shape[0], -1, block).square().mean(-1)
    return e, (e > e.amax(1, keepdim=True) * 1e-4).to(e.dtype)


def active_rms(x, block):
    """RMS over the active blocks (of 20 ms): what SNR means for speech with pauses."""
    e, on = active_blocks(x, block)
    return ((e * on).sum(1) / on.sum(1).clamp_min(1.0)).clamp_min(1e-14).sqrt()


def rms(x):
    return x.square().mean(1).clamp_min(1e-14).sqrt()


def assemble(speech, target, noise, speech_gain, noise_gain, offset, peak, clip, dither):
    """Speech and noise at their gains and a constant, scaled together so that the mixture peaks at peak; then clip and
    16-bit grain."""
    mixture = speech * speech_gain[:, None] + noise * noise_gain[:, None] + offset[:, None]
    scale = (peak / mixture.abs().amax(1).clamp_min(1e-5))[:, None]
    mixture = mixture * scale
    mixture = torch.minimum(torch.maximum(mixture, -clip[:, None]), clip[:, None]) + dither * (1.0 / 32768.0)
    return mixture, target * (speech_gain[:, None] * scale)


# ---- rooms ------------------------------------------------------------------------------------------------------------

def make_rooms(count, n, rate, device):
    """(count, n) impulse responses: direct path, image sources to the third order, then noise that decays a band at a
    time (treble faster). RT60 0.1 to 1 s, most below 0.5; direct path at 1 ms."""
    size = torch.rand(count, 3, device=device) * torch.tensor([7.0, 6.0, 2.0], device=device) + \
        torch.tensor([2.5, 2.0, 2.2], device=device)
    source, ear = (0.3 + 0.4 * torch.rand(2, count, 3, device=device)) * size
    near = torch.rand(count, 1, device=device) ** 1.5                       # many talk close to the microphone
    ear = source + (ear - source) * near + 0.05
    rt = 0.1 + 0.9 * torch.rand(count, device=device) ** 2.0
    volume = size.prod(1)
    surface = 2 * (size[:, 0] * size[:, 1] + size[:, 1] * size[:, 2] + size[:, 0] * size[:, 2])
    reflection = (1 - (0.161 * volume / (surface * rt)).clamp(0.02, 0.95)).sqrt()
    k = torch.arange(-3, 4, device=device)
    order = torch.stack(torch.meshgrid(k, k, k, indexing="ij"), -1).reshape(-1, 3)
    order = order[order.abs().sum(1) <= 3]                                  # (images, 3)
    odd = (order % 2).float()
    image = order[None] * size[:, None] + odd * (size - source)[:, None] + (1 - odd) * source[:, None]
    distance = (image - ear[:, None]).square().sum(-1).sqrt().clamp_min(0.1)
    direct = (source - ear).square().sum(-1, keepdim=True).sqrt().clamp_min(0.1)
    at = (rate // 1000 + (distance - direct) * (rate / 343.0)).round().long()
    gain = direct / distance * reflection[:, None] ** order.abs().sum(1)[None].float()
    sign = torch.where(torch.rand_like(gain) < 0.5, -1.0, 1.0)
    gain = torch.where(order.abs().sum(1)[None] == 0, gain, gain * sign)
    rooms = torch.zeros(count, n, device=device)
    rooms.scatter_add_(1, at.clamp(0, n - 1), gain * (at < n))
    m = smooth_length(n)
    hz = torch.fft.rfftfreq(m, 1 / rate).to(device)
    t = torch.arange(n, device=device) / rate
    tail = torch.zeros_like(rooms)
    edges = (0.0, 250.0, 1000.0, 3000.0, rate)
    for i, speed in enumerate((0.8, 1.0, 1.2, 1.7)):
        band = ((hz >= edges[i]) & (hz < edges[i + 1])).float()
        noise = torch.fft.irfft(torch.fft.rfft(torch.randn(count, m, device=device)) * band, m)[:, :n]
        tail += noise * torch.exp(-6.9 * speed * t[None] / rt[:, None])
    # the tail's energy against the direct path's, from the critical distance; it grows in over the first 20 ms
    critical = 0.057 * (volume / rt).sqrt()
    ratio = (direct[:, 0] / critical).clamp(0.02, 2.0)
    tail *= (t[None] - 0.001).clamp(0.0, 0.02) / 0.02
    tail *= (ratio / tail.square().sum(1).clamp_min(1e-9).sqrt())[:, None]
    return rooms + tail


class Mix:
    def __init__(self, config, rate, device, compiler=None):
        c = self.config = dict(DEFAULTS, **{k: v for k, v in config.items() if k in DEFAULTS})
        self.rate, self.device, self.batch = rate, device, c["batch"]
        self.octaves = math.log2(rate / 2000.0)             # from 1 kHz to the top
        hop = rate // 100
        self.n = int(round(c["seconds"] * rate / hop)) * hop
        self.fft = smooth_length(self.n + int(c["room_seconds"] * rate))
        self.hz = (torch.arange(self.fft // 2 + 1, device=device) * (rate / self.fft)).float()
        self.table = sinc_table(device)
        self.rooms = make_rooms(c["rooms"], int(c["room_seconds"] * rate), rate, device)
        self.measured = None
        self.version = -1
        self.blend = torch.tensor([0.4, 0.2, 0.25, 0.15], device=device)    # coloured, hum, clicks, chirps
        wrap = compiler or (lambda f: f)
        self.crop, self.crop_plain, self.equaliser = wrap(crop), wrap(crop_plain), wrap(equaliser)
        self.assemble = wrap(assemble)
        measure, block = wrap(active_rms), rate // 50
        self.active_rms = lambda x: measure(x, block)
        n = self.rooms.shape[1]
        late = (torch.arange(n, device=device) - 0.051 * rate).clamp_min(0.0) / rate
        self.shorten = torch.exp(-late / 0.05)                              # after 50 ms: a room of RT60 0.35 s at most

    # -- draws
    def _u(self, n, low=0.0, high=1.0):
        return low + (high - low) * torch.rand(n, device=self.device)

    def _some(self, share, of=None):
        """Indices of share * of items (at least one if share > 0), at random."""
        of = of or self.batch
        k = int(round(share * of)) if share * of >= 1 else int(share > 0)
        return torch.randperm(of, device=self.device)[:k]

    def _rate(self, n):
        most = int(1024 * self.config["speed"])
        k = torch.randint(-most, most + 1, (n,), device=self.device)
        return 1024 + k * (torch.rand(n, device=self.device) < 0.8)

    def _speech(self, bank, n):
        """(n, samples) and the highest frequency each can hold."""
        i = bank.choose(n)
        start, length, band = bank.start[i], bank.length[i], bank.band[i]
        begin = (torch.rand(n, device=self.device, dtype=torch.float64) * length).long()
        speed = self._rate(n)
        x = self.crop(bank.audio, start, length, begin, speed, self.table, self.n)
        return x, band * (0.95 / 1024.0) * speed

    def _noise(self, bank, n):
        start, length = bank.draw(n)
        begin = (torch.rand(n, device=self.device, dtype=torch.float64) * length).long()
        most = self.config["noise_octaves"]
        speed = (self._rate(n) * 2.0 ** self._u(n, -most, most)).round().long()
        speed = torch.where(self._u(n) < self.config["backwards"], -speed, speed)
        x = self.crop_plain(bank.audio, start, length, begin, speed, self.n)
        return x / rms(x)[:, None].clamp_min(1e-4)

    def _edges(self, n, share):
        """Low-pass edges in Hz and orders, a share of them in the band."""
        inside = 3500.0 * torch.exp(self._u(n) * math.log(0.975 * self.rate / 7000.0))
        edge = torch.where(self._u(n) < share, inside, torch.full((n,), 1e5, device=self.device))
        return edge, self._u(n, 8.0, 40.0)

    def _curve(self, edge, order, high_pass):
        """A random equaliser an item."""
        n = len(edge)
        return self.equaliser(self.hz, torch.randn(n, device=self.device) * 1.5, torch.randn(n, 3, device=self.device) * 4.0,
                              self._u((n, 3), -4.0, self.octaves), self._u((n, 3), 0.3, 1.5), edge, order, high_pass)

    def _fade(self, edges, width=0.01):
        """(items, n): 0 before edges (seconds), 1 after, 10 ms between."""
        t = torch.arange(self.n, device=self.device)[None] / self.rate
        return ((t - edges[:, None]) / width + 0.5).clamp(0.0, 1.0)

    # -- ingredients
    def _voices(self, pool):
        return self._banded_voices(pool)[0]

    def _banded_voices(self, pool):
        """Dry speech, unit active RMS, and what it can hold: crops, some joined to another, some with a pause."""
        c, seconds = self.config, self.n / self.rate
        x, band = self._speech(pool.speech, self.batch)
        x = x / self.active_rms(x)[:, None].clamp_min(3e-4)
        i = self._some(c["joined"])
        if len(i):
            y, other = self._speech(pool.speech, len(i))
            band[i] = torch.minimum(band[i], other)
            y = y / self.active_rms(y)[:, None].clamp_min(3e-4)
            edge, gap = self._u(len(i), 0.15, 0.85) * seconds, self._u(len(i), 0.0, 0.5)
            level = 10 ** (self._u(len(i), -8.0, 8.0) / 20)
            x[i] = x[i] * (1 - self._fade(edge)) + y * level[:, None] * self._fade(edge + gap)
        i = self._some(c["paused"])
        if len(i):
            begin = self._u(len(i), -0.5, 0.9) * seconds
            pause = 0.3 * torch.exp(self._u(len(i)) * math.log(c["pause_seconds"] / 0.3))
            keep = 1 - self._fade(begin) * (1 - self._fade(begin + pause))
            x[i] = x[i] * keep
        return x, band

    def _babble(self, pool, n, voices=6):
        x, _ = self._speech(pool.speech, n * voices)
        x = x / self.active_rms(x)[:, None].clamp_min(1e-3)
        level = 10 ** (self._u(n * voices, -10.0, 0.0) / 20) * (self._u(n * voices) < 0.85)
        level[::voices] = 1.0
        x = (x * level[:, None]).reshape(n, voices, -1).sum(1)
        return x / rms(x)[:, None]

    def _coloured(self, n):
        """White noise with a random slope and random peaks."""
        white = torch.fft.rfft(torch.randn(n, self.n, device=self.device))
        hz = torch.arange(white.shape[1], device=self.device) * (self.rate / self.n)
        slope = self._u(n, -0.5, 1.3)
        gain = (hz[None].clamp_min(40.0) / 1000.0) ** -slope[:, None]
        for _ in range(2):
            octave = torch.log2(hz.clamp_min(20.0) / 1000.0)[None] - self._u(n, -3.5, self.octaves - 0.5)[:, None]
            gain = gain * torch.exp(1.5 * torch.randn(n, 1, device=self.device) *
                                    torch.exp(-0.5 * (octave / self._u(n, 0.05, 0.8)[:, None]).square()))
        x = torch.fft.irfft(white * gain, self.n)
        return x / rms(x)[:, None]

    def _slow(self, n, points):
        """Smooth random curves through this many random points, about unit variance."""
        x = torch.randn(n, 1, points, device=self.device)
        return torch.nn.functional.interpolate(x, size=self.n, mode="linear", align_corners=True)[:, 0]

    def _moving(self, n, db):
        """(n, samples) gains that wander by about this many dB within a second or three."""
        return torch.exp(self._slow(n, max(3, int(self.n / self.rate))) * (db * 0.11512925))

    def _starts(self, n):
        """(n, samples) of something that begins or, in half the items, ends on the way."""
        on = self._fade(self._u(n, 0.1, 0.8) * (self.n / self.rate), 0.05)
        return torch.where(self._u(n)[:, None] < 0.5, on, 1.0 - on)

    def _silence(self, n):
        """(n, samples) gains: nothing, or 40 to 80 dB down, until some place in the first three quarters; then 1."""
        low = 10 ** (-self._u(n, 40.0, 80.0) / 20) * (self._u(n) < 0.5)
        return torch.maximum(low[:, None], self._fade(self._u(n, 0.1, 0.75) * (self.n / self.rate)))

    def _hum(self, n):
        """Harmonics of mains or machine frequencies, slowly wandering."""
        mains = torch.where(self._u(n) < 0.5, torch.full((n,), 50.0, device=self.device),
                            torch.full((n,), 60.0, device=self.device))
        f0 = torch.where(self._u(n) < 0.5, mains, torch.exp(self._u(n, math.log(25.0), math.log(700.0))))
        wander = 1 + 0.02 * (self._u(n) < 0.5).float()[:, None] * self._slow(n, 12)
        phase = (f0[:, None] * wander / self.rate).double().cumsum(1)
        fall = self._u(n, 0.3, 2.0)
        x = torch.zeros(n, self.n, device=self.device)
        for k in range(1, 17):
            level = k ** -fall * torch.rand(n, device=self.device) * (f0 * k < 0.47 * self.rate)
            turn = (phase * k + torch.rand(n, 1, device=self.device)) % 1.0
            x += level[:, None] * torch.sin(2 * math.pi * turn.float())
        x = x + 0.1 * self._u(n)[:, None] * torch.randn_like(x)
        return x / rms(x)[:, None]

    def _clicks(self, n):
        """Keyboard-like: short decaying bursts at random times, a colour an item."""
        density = self._u(n, 1.5, 14.0) / self.rate
        hits = (torch.rand(n, self.n, device=self.device) < density[:, None]).float()
        hits = hits * (0.3 + torch.rand(n, self.n, device=self.device))
        hits[:, self.rate // 200] += 1.0                                        # never silent
        length = self.rate // 10
        t = torch.arange(length, device=self.device)[None] / self.rate
        decay = torch.exp(self._u(n, math.log(0.001), math.log(0.03)))[:, None]
        tone = torch.sin(2 * math.pi * self._u(n, 200.0, 5000.0)[:, None] * t)
        burst = torch.exp(-t / decay) * (torch.randn(n, length, device=self.device) + self._u(n, 0.0, 2.0)[:, None] * tone)
        m = smooth_length(self.n + length)
        x = torch.fft.irfft(torch.fft.rfft(hits, m) * torch.fft.rfft(burst, m), m)[:, :self.n]
        return x / rms(x)[:, None]

    def _chirps(self, n):
        """Sweeps and gated beeps."""
        f = torch.exp(self._u(n, math.log(150.0), math.log(6000.0)))[:, None]
        sweep = torch.exp(0.5 * self._slow(n, 6) * (self._u(n) < 0.6).float()[:, None])
        turn = ((f * sweep).clamp(30.0, 0.475 * self.rate) / self.rate).double().cumsum(1) % 1.0
        t = torch.arange(self.n, device=self.device)[None] / self.rate
        gate = ((t * self._u(n, 0.5, 8.0)[:, None]) % 1.0 < self._u(n, 0.2, 1.1)[:, None]).float()
        half = self.rate // 400
        smooth = torch.nn.functional.avg_pool1d(gate[:, None], 2 * half + 1, 1, half)[:, 0]
        x = torch.sin(2 * math.pi * turn.float()) * smooth
        return x / rms(x)[:, None].clamp_min(1e-2)

    def _synthetic(self, n):
        """A random blend of the kinds, few at a time; the coloured part is amplitude-modulated in half the items."""
        depth = (self._u(n) < 0.5).float() * self._u(n, 0.0, 1.0)
        slow = torch.where(self._u(n)[:, None] < 0.5, self._slow(n, 12), self._slow(n, 60))
        coloured = self._coloured(n) * torch.exp(depth[:, None] * slow)
        kinds = (coloured, self._hum(n), self._clicks(n), self._chirps(n))
        pick = torch.multinomial(self.blend.expand(n, 4), 1)
        weight = (torch.rand(n, 4, device=self.device) < 0.25).float() * 10 ** (self._u((n, 4), -20.0, 0.0) / 20)
        weight.scatter_(1, pick, 1.0)
        x = sum(k * weight[:, i, None] for i, k in enumerate(kinds))
        return x / rms(x)[:, None]

    def _rooms(self, pool):
        if self.version != pool.version:
            self.version = pool.version
            self.measured = None
            if pool.rirs:
                n = self.rooms.shape[1]
                self.measured = torch.zeros(len(pool.rirs), n)
                for i, h in enumerate(pool.rirs):
                    m = min(n, len(h))
                    self.measured[i, :m] = torch.from_numpy(h[:m])
                self.measured = self.measured.to(self.device)

    def _impulses(self, n):
        """n impulse responses; a third of them measured ones where there are some."""
        h = self.rooms[torch.randint(len(self.rooms), (n,), device=self.device)]
        k = n // 3 if self.measured is not None else 0
        if k:
            h[:k] = self.measured[torch.randint(len(self.measured), (k,), device=self.device)]
        return h

    # -- the whole
    def _filters(self, band=None):
        """Gains (batch, bins) for speech and noise, both within the band; a few items hear both through one telephone
        line."""
        c, B = self.config, self.batch
        low = torch.where(self._u(B) < 0.9, self._u(B, *c["rumble"]), self._u(B, 80.0, 300.0))
        noise_low = torch.exp(self._u(B, math.log(15.0), math.log(120.0)))
        edge, order = self._edges(B, c["low_pass"])
        noise_edge, noise_order = self._edges(B, 0.15)
        i = self._some(c["telephone"])
        edge[i] = noise_edge[i] = self._u(len(i), 3300.0, 3900.0)
        order[i] = noise_order[i] = self._u(len(i), 20.0, 60.0)
        low[i] = noise_low[i] = self._u(len(i), 60.0, 300.0)
        band = torch.full_like(edge, 1e5) if band is None else band
        steep = torch.full_like(order, 60.0)
        order, noise_order = torch.where(band < edge, steep, order), torch.where(band < noise_edge, steep, noise_order)
        edge, noise_edge = torch.minimum(edge, band), torch.minimum(noise_edge, band)
        return self._curve(edge, order, low), self._curve(noise_edge, noise_order, noise_low)

    def _speaker(self, x, curve):
        """Dry speech -> speech as the microphone hears it, and the part of it to keep."""
        c, n, fft = self.config, self.n, self.fft
        i = self._some(c["moving"])
        if len(i):
            x[i] = x[i] * self._moving(len(i), 4.0)
        spectrum = torch.fft.rfft(x, fft) * curve
        i = self._some(c["reverb"])
        if not len(i):
            target = torch.fft.irfft(spectrum, fft)[:, :n]
            return target, target
        h = self._impulses(len(i))
        wet = torch.fft.irfft(spectrum[i] * torch.fft.rfft(h, fft), fft)[:, :n]
        spectrum[i] = spectrum[i] * torch.fft.rfft(h * self.shorten, fft)
        target = torch.fft.irfft(spectrum, fft)[:, :n]
        speech = target.clone()
        speech[i] = wet
        return speech, target

    def _surroundings(self, pool, curve):
        """Recorded noise, one to three at once, or babble or synthetic noise with or without it."""
        c, B, n, fft = self.config, self.batch, self.n, self.fft
        noise = self._noise(pool.noise, B)
        j = self._some(c["second"])
        for j, most in ((j, 3.0), (j[:len(j) // 3], 0.0)):
            if len(j):
                noise[j] += self._noise(pool.noise, len(j)) * 10 ** (self._u(len(j), -15.0, most) / 20)[:, None]
        order = torch.randperm(B, device=self.device)
        at = 0
        for share, keep_low, keep_high, make in ((c["babble"], 0.05, 0.5, lambda k: self._babble(pool, k)),
                                                 (c["synthetic"], 0.1, 1.0, self._synthetic)):
            k = int(round(share * B))
            j, at = order[at:at + k], at + k
            if k:
                keep = (self._u(k) < 0.4).float() * self._u(k, keep_low, keep_high)
                noise[j] = noise[j] * keep[:, None] + make(k)
        spectrum = torch.fft.rfft(noise, fft) * curve
        j = self._some(c["noise_room"])
        if len(j):
            spectrum[j] = spectrum[j] * torch.fft.rfft(self._impulses(len(j)), fft)
        noise = torch.fft.irfft(spectrum, fft)[:, :n]
        for share, gain in ((c["noise_moving"], lambda k: self._moving(k, 5.0)), (c["noise_starts"], self._starts)):
            j = self._some(share)
            if len(j):
                noise[j] = noise[j] * gain(len(j))
        return noise

    def _floor(self, noise, curve):
        """Items of noise (items, samples), half of them made steady, as far below speech of level 1 as floor_snr says."""
        steady = (len(noise) + 1) // 2
        spectrum = torch.fft.rfft(self._coloured(steady), self.fft) * curve[:steady]
        floor = torch.cat((torch.fft.irfft(spectrum, self.fft)[:, :self.n], noise[steady:]))
        down = self._u(len(noise), *self.config["floor_snr"])
        return floor * (10 ** (-down / 20) / rms(floor))[:, None]

    @torch.no_grad()
    def __call__(self, pool):
        c, B = self.config, self.batch
        self._rooms(pool)
        voices, band = self._banded_voices(pool)
        curve, noise_curve = self._filters(band)
        speech, target = self._speaker(voices, curve)
        noise = self._surroundings(pool, noise_curve)

        # SNR: the middle of the range most often, all of it sometimes
        middle = (10.0 + 8.0 * torch.randn(B, device=self.device)).clamp(c["snr_low"], c["snr_high"])
        snr = torch.where(self._u(B) < 0.65, middle, self._u(B, c["snr_low"], c["snr_high"]))
        speech_gain = 1.0 / self.active_rms(speech)
        noise_gain = 10 ** (-snr / 20) / rms(noise)
        j = self._some(c["silent"])
        if len(j):
            on = self._silence(len(j))
            speech[j], target[j], noise[j] = speech[j] * on, target[j] * on, noise[j] * on
        order = torch.randperm(B, device=self.device)
        n_clean, n_noise = int(round(c["clean_only"] * B)), int(round(c["noise_only"] * B))
        noise_gain[order[:n_clean]] = 0.0
        j = order[:int(round(c["floor"] * n_clean))]
        if len(j):
            stays = self._floor(noise[j], noise_curve[j]) / speech_gain[j][:, None]
            speech, target = speech.index_add(0, j, stays), target.index_add(0, j, stays)
        speech_gain[order[n_clean:n_clean + n_noise]] = 0.0
        level = torch.where(self._u(B) < 0.65, self._u(B, -18.0, -1.0), self._u(B, -45.0, -18.0))
        peak = 10 ** (level / 20)
        clip = torch.full((B,), 1.0, device=self.device)
        j = self._some(c["clipped"])
        clip[j] = peak[j] * 10 ** (-self._u(len(j), 1.0, 9.0) / 20)
        offset = torch.zeros(B, device=self.device)
        j = self._some(c["offset"])
        offset[j] = (2.0 * (self._u(len(j)) < 0.5).float() - 1.0) * torch.exp(self._u(len(j), math.log(0.02), math.log(5.0)))
        dither = torch.rand(B, self.n, device=self.device) - 0.5
        dither[self._some(c["silent"])] = 0.0               # digital silence is nothing at all
        return self.assemble(speech, target, noise, speech_gain, noise_gain, offset, peak, clip, dither)
