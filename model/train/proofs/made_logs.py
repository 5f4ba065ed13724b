# SPDX-License-Identifier: MIT
"""Logs of programs that nobody wrote: their formats, messages, names and values are drawn from a seed.

log_lines.py trains on them beside its five Debian hosts, so that a model learns what logs have in common (what came before
comes again, where numbers are and where words) and not the hosts it was shown.
"""
import string
import time

WORDS = tuple((
    "accept access account action active adapter add address agent alarm alert alive allocate answer apply archive assign attach "
    "attempt audit auth backend backup bad balance batch begin bind block body boot bridge broker bucket buffer build bus bytes "
    "cache call cancel card certificate chain change channel check child chunk class clean clear client clock close cluster code "
    "collect command commit complete config connect connection console consumer container context control controller copy core "
    "count create cursor cycle daemon data database deadline debug default delay delete deliver deny depth destroy detach device "
    "disable disconnect disk dispatch domain done down drain drive driver drop dump duplicate echo edge element empty enable end "
    "engine enter entry epoch error event evict exceed exchange exit expire export factory failed fan fatal fetch fields file "
    "filter find finish first flag flow flush folder for forward found frame free from full garbage gateway get grant group guard "
    "handle handler handshake hash head health heap heartbeat hello hold hook host idle ignore image import in index init input "
    "insert instance interface internal invalid is item job join journal keep kernel key kill label last latency leader lease leave "
    "length level library limit line link list listen load local lock log login lookup loop lost machine main manager map mark "
    "master match max memory merge message meta method metric migrate min missing mode model module monitor mount move name "
    "network new next node not notify null number object of offset on open operation option order out output owner pack packet "
    "page parent parse partition pass path pause peer pending permission ping pipe plan plugin point policy poll pool port power "
    "prepare primary probe process producer profile progress promote protocol provider proxy publish pull purge push query queue "
    "quota range rate read ready reason rebuild receive record recover redirect reduce refresh refused region register reject "
    "release reload remote remove rename render replay replica reply report request reserve reset resize resolve resource response "
    "restart restore result resume retry return revoke ring role rollback root rotate route row rule run sample save scan schedule "
    "schema scope seal search sector segment select send sensor sequence server service session set shard share shutdown signal "
    "size skip slave sleep slot slow snapshot socket source spawn split stage stale start state static status step stop storage "
    "store stream string submit subscribe success suspend switch sync system table tag target task temperature terminate test "
    "thread threshold throttle ticket time timeout to token topic trace track transaction transfer trigger try tunnel type "
    "unable unit unknown unlock unmount update upload user using vacuum valid value verify version view volume wait wake warning "
    "watch weight window with worker write zone").split())
LITTLE = ("the a an of for in on at by as to from with without no not is are was were has have been will can could must may this that its all any too "
          "many now again already still after before since until within via per and or but because cannot unable denied invalid more than").split()
LEVELS = (("INFO", "WARN", "ERROR", "DEBUG"), ("info", "warn", "error", "debug"), ("I", "W", "E", "D"), ("notice", "warn", "error", "info"))
DOMAINS = (".local", ".lan", ".example.com", ".example.org", ".internal", ".corp.example.net")
HEX, DIGITS, LETTERS = "0123456789abcdef", string.digits, string.ascii_lowercase
SYLLABLES = tuple(c + v + e for c in ("", *"bcdfghjklmnprstvwz", "br", "ch", "gr", "sh", "st", "tr") for v in "aeiou" for e in ("", "", "l", "n", "r", "s"))


def letters(r, n, of=LETTERS):
    return "".join(r.choices(of, k=n))


def name(r):
    """What somebody may have called a host, a person or a thing."""
    kind = r.random()
    if kind < 0.3:
        return "".join(r.choices(SYLLABLES, k=r.randint(2, 3)))
    if kind < 0.5:
        return letters(r, r.randint(2, 9))
    if kind < 0.8:
        return r.choice(WORDS)
    return r.choice(WORDS) + r.choice(("-", "_", "")) + r.choice(WORDS)


def host(r):
    stem, kind = name(r), r.random()
    if kind < 0.3:
        stem += r.choice(("%d", "%02d", "-%d", "-%02d", "%03d")) % r.randint(0, 40)
    elif kind < 0.4:
        stem = "ip-%d-%d-%d-%d" % tuple(r.randint(1, 254) for _ in range(4))
    elif kind < 0.5:
        stem += "-" + letters(r, r.randint(4, 10), HEX)
    return stem + (r.choice(DOMAINS) if r.random() < 0.15 else "")


def often(r, values):
    """A draw in which the first values are the most frequent."""
    return values[int(len(values) * r.random() ** 2)]


class Values:
    """What the programs of a site speak of; each kind is a function without arguments."""

    def __init__(self, r):
        self.r, self.counter = r, r.randint(0, 10 ** r.randint(2, 8))
        self.net = "%d.%d" % (r.randint(1, 223), r.randint(0, 255))
        self.pools = [[make() for _ in range(r.randint(2, 24))] for make in (
            lambda: name(r), lambda: host(r), lambda: "%s.%d.%d" % (self.net, r.randint(0, 255), r.randint(1, 254)), self.path, self.dotted,
            lambda: letters(r, r.choice((6, 7, 8, 12)), HEX), lambda: "%s%d" % (name(r), r.randint(0, 99)), lambda: str(r.randint(0, 10 ** r.randint(1, 6))))]

    def path(self):
        r = self.r
        return "/" + "/".join(name(r) for _ in range(r.randint(1, 4))) + r.choice(("", "", ".log", ".conf", ".js", ".html", ".db", "/%d" % r.randint(1, 999)))

    def dotted(self):
        r = self.r
        return ".".join(name(r) for _ in range(r.randint(1, 3))) + "." + name(r).title().replace("-", "").replace("_", "")

    def kind(self):
        """A function that gives one field's values, the same kind every time."""
        r = self.r
        if r.random() < 0.5:
            pool = r.choice(self.pools)
            if r.random() < 0.4:
                pool = r.sample(pool, max(1, len(pool) // 3))
            return lambda: often(r, pool)
        top, places, n = 10 ** r.randint(1, 9), r.randint(1, 6), r.choice((4, 6, 8, 12, 16, 32))
        unit, sign = r.choice(("ms", "s", " ms", " seconds", "kB", " KB", " bytes", "%", "MB", "us", "")), r.choice(("", "", "-", "0x", "#"))
        return r.choice((
            lambda: sign + str(r.randint(0, top)), lambda: str(r.randint(0, min(top, 9999))), lambda: "%.*f" % (places, r.random() * min(top, 10 ** 4)),
            self.count, lambda: str(int(min(top, 10 ** 6) ** r.random())) + unit, lambda: letters(r, n, HEX), lambda: "0x" + letters(r, min(n, 16), HEX),
            lambda: "%s.%d.%d:%d" % (self.net, r.randint(0, 255), r.randint(1, 254), r.randint(1024, 65535)), lambda: str(r.randint(1024, 65535)),
            lambda: "-".join(letters(r, k, HEX) for k in (8, 4, 4, 4, 12)), lambda: ":".join(letters(r, 2, HEX) for _ in range(6)),
            lambda: "%d.%d.%d" % (r.randint(0, 5), r.randint(0, 20), r.randint(0, 40)), lambda: r.choice(("true", "false")), lambda: "%s.%d.%d" % (
                self.net, r.randint(0, 255), r.randint(1, 254)), lambda: letters(r, n, string.ascii_letters + DIGITS)))

    def count(self):
        self.counter += self.r.choice((1, 1, 1, 2, 7))
        return str(self.counter)


def inflected(r, word):
    ending = r.choice(("", "", "", "", "s", "ed", "ed", "ing", "er"))
    if word.endswith("e") and ending[:1] in ("e", "i"):
        word = word[:-1]
    return word + ending


def phrase(r):
    words = []
    for _ in range(r.randint(1, 5)):
        words += ([r.choice(LITTLE)] if r.random() < 0.25 else []) + [inflected(r, r.choice(WORDS))]
    text = " ".join(words)
    return r.choice((text, text, text.capitalize(), text.title().replace(" ", "") if r.random() < 0.3 else text))


def message(r, values):
    """A message: [text or a function that gives a field]."""
    parts, style = [phrase(r)], r.random()
    for _ in range(r.choice((0, 1, 1, 2, 2, 3, 4, 6))):
        field = values.kind()
        if style < 0.3:
            key = r.choice(WORDS)
            parts += [r.choice((" ", ", ")) + key + "=", field]
        else:
            opening, closing = r.choice(((" ", ""), (" ", ""), (" ", ""), (": ", ""), (" (", ")"), (" [", "]"), (' "', '"'), (" '", "'"), (" <", ">"), (" = ", ",")))
            parts += [opening, field, closing]
            if r.random() < 0.6:
                parts.append(" " + phrase(r))
    return parts + [r.choice(("", "", "", ".", "...", "!", ";"))]


def say(parts):
    return "".join(p if isinstance(p, str) else p() for p in parts)


class Program:
    """Its messages, the frequent ones first, its process number, and what it repeats."""

    def __init__(self, r, values):
        self.r, self.name = r, name(r)
        if r.random() < 0.2:
            self.name = values.dotted()
        self.pid, self.forks = r.randint(1, 40000), r.random() < 0.2
        self.messages = [(message(r, values), r.choice((0, 0, 0, 0, 1, 1, 2, 3))) for _ in range(r.choice((1, 2, 3, 4, 6, 9, 14)))]
        self.thread = r.choice(("main", "%s-%d" % (name(r), r.randint(0, 20)), letters(r, 6, HEX)))
        self.file = "%s.%s:%d" % (name(r), r.choice(("c", "go", "py", "cc", "rs")), r.randint(10, 2000))
        self.follow = []

    def next(self):
        """(level 0 to 3, text)"""
        if self.forks and self.r.random() < 0.5:
            self.pid = self.pid % 60000 + self.r.randint(1, 30)
        if self.follow:
            parts, level = self.follow.pop(0)
        else:
            i = int(len(self.messages) * self.r.random() ** 2)
            parts, level = self.messages[i]
            if self.r.random() < 0.3:                   # one thing leads to another
                self.follow = self.messages[i + 1:i + 3]
        return level, say(parts)


class Format:
    """How a line looks: (seconds since 1970, host, program, level, text) -> line."""

    def __init__(self, r, values):
        self.r, self.levels, self.boot = r, r.choice(LEVELS), r.random() * 1e6
        self.agents = ["%s/%d.%d" % (name(r).title(), r.randint(0, 20), r.randint(0, 99)) for _ in range(r.randint(1, 5))]
        self.paths, self.clients = [values.path() for _ in range(r.randint(2, 20))], values.pools[2]
        kinds = (self.syslog, self.syslog, self.syslog, self.iso, self.iso, self.java, self.bracket, self.web, self.boot_time, self.columns,
                 self.logfmt, self.json, self.bars, self.glog, self.plain)
        self.line = r.choice(kinds)

    def clock(self, form, now):
        return time.strftime(form, time.gmtime(now))

    def syslog(self, now, at, p, level, text):
        t = time.gmtime(now)
        pid = "[%d]" % p.pid if p.pid % 5 else ""
        return "%s %2d %s %s %s%s: %s" % (time.strftime("%b", t), t.tm_mday, time.strftime("%H:%M:%S", t), at, p.name, pid, text)

    def iso(self, now, at, p, level, text):
        return "%s.%06d+00:00 %s %s[%d]: %s" % (self.clock("%Y-%m-%dT%H:%M:%S", now), now % 1 * 1e6, at, p.name, p.pid, text)

    def java(self, now, at, p, level, text):
        return "%s,%03d %-5s [%s] %s: %s" % (self.clock("%Y-%m-%d %H:%M:%S", now), now % 1 * 1e3, self.levels[level], p.thread, p.name, text)

    def bracket(self, now, at, p, level, text):
        return "[%s] [%s] %s" % (self.clock("%a %b %d %H:%M:%S %Y", now), self.levels[level], text)

    def web(self, now, at, p, level, text):
        r = self.r
        status, size = r.choices(((200, r.randint(100, 90000)), (304, 0), (404, 153), (302, 0), (500, 170)), (80, 14, 4, 2, 1))[0]
        return '%s - - [%s +0000] "%s %s HTTP/1.1" %d %d "%s" "%s"' % (often(r, self.clients), self.clock("%d/%b/%Y:%H:%M:%S", now), "POST" if level > 2 else "GET",
                                                                     often(r, self.paths), status, size, r.choice(("-", "-", self.paths[0])), often(r, self.agents))

    def boot_time(self, now, at, p, level, text):
        return "[%12.6f] %s: %s" % ((now + self.boot) % 1e6, p.name, text)

    def columns(self, now, at, p, level, text):
        return "%s.%03d %5d %5d %s %s: %s" % (self.clock("%m-%d %H:%M:%S", now), now % 1 * 1e3, p.pid, p.pid + level, self.levels[level][0], p.name, text)

    def logfmt(self, now, at, p, level, text):
        return 'ts=%s.%03dZ level=%s caller=%s msg="%s"' % (self.clock("%Y-%m-%dT%H:%M:%S", now), now % 1 * 1e3, self.levels[level], p.file, text.replace('"', "'"))

    def json(self, now, at, p, level, text):
        return '{"time":"%s","level":"%s","service":"%s","host":"%s","msg":"%s"}' % (self.clock("%Y-%m-%dT%H:%M:%SZ", now), self.levels[level], p.name, at, text.replace('"', "'"))

    def bars(self, now, at, p, level, text):
        return "%s:%03d|%s|%d|%s" % (self.clock("%Y%m%d-%H:%M:%S", now), now % 1 * 1e3, p.name, p.pid, text)

    def glog(self, now, at, p, level, text):
        return "%s%s.%06d %5d %s] %s" % (self.levels[level][0].upper(), self.clock("%m%d %H:%M:%S", now), now % 1 * 1e6, p.pid, p.file, text)

    def plain(self, now, at, p, level, text):
        return "%s %s %s %s" % (self.clock("%y%m%d %H%M%S", now), p.pid, self.levels[level], text)


def lines(r, count):
    """`count` lines of a made-up site: one to five hosts, one to some twenty programs, one format."""
    values = Values(r)
    form, hosts = Format(r, values), [host(r) for _ in range(r.choice((1, 1, 1, 2, 5)))]
    programs = [Program(r, values) for _ in range(r.choice((1, 3, 6, 12, 20)))]
    now, pace, line = 1.0e9 + r.random() * 8e8, 10 ** r.uniform(-2, 1.5), ""
    for _ in range(count):
        now += r.expovariate(1 / pace)
        if not line or r.random() > 0.03:               # else said again
            p = often(r, programs)
            line = form.line(now, often(r, hosts), p, *p.next())
        yield line
