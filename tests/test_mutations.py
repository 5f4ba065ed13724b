# SPDX-License-Identifier: MIT
"""Configurations changed at random: `ssm check` and ssmd's start say the same of each, and say where.

MUTATIONS=10000 for the long run (20 minutes); SEED picks others."""

import os
import pathlib
import random
import re
import subprocess
import sys
import tempfile

import script

MUTATIONS = int(os.environ.get("MUTATIONS", "150"))
SEED = int(os.environ.get("SEED", "1"))
BUILD = pathlib.Path(os.environ.get("SSM_BUILD", "build/release")).resolve()
MODELS = pathlib.Path("tests/data").resolve()

# What a start may meet that a check doesn't try: files, devices and addresses (sysexits 66, 69, 73, 74, 77).
SURROUNDINGS = {66, 69, 73, 74, 77}

BASES = [
    """version: 1
node: studio
publish: ipc://p
control: auto
threads: 1
deadline: 2ms
pipelines:
  one:
    source: {type: file, path: x.wav, paced: false, channels: [0]}
    model: tiny-denoise
    strength: 12
    sinks:
      - {type: publish}
      - {type: file, path: out.wav}
  two:
    source:
      type: file
      path: x.wav
      paced: false
      buffer: 1s
    model: tiny-denoise
    bypass: true
    sinks: [{type: file, path: two.flac, rate: 8000}]
""",
    """version: 1
publish: ""
device: cpu
drain: 1s
pipelines:
  pipe:
    source: {type: pcm, path: "-", rate: 16000, pcm_channels: 2, format: s16le}
    model: tiny-denoise
    sinks:
      - type: file
        path: pipe.wav
""",
]

ODD = ["no", "yes", "012", "1:30", "-1", "1e9", "null", "~", "[]", "{}", "''", "99999999999999999999", "0s", "1.5", "3 min", "\u00e9",
       "x" * 3000, "*a", "&a b", "!t 1", "file", "publish", "0", "[1, 2]", "{a: b}", "'\\x00'", "tcp://0.0.0.0:0", "%", "@", "`"]


def swap_value(chance, text):
    places = [m.span(1) for m in re.finditer(r": *([^\s,{}\[\]]+)", text)]
    at, to = chance.choice(places) if places else (0, 0)
    return text[:at] + chance.choice(ODD) + text[to:]


def by_line(change):
    def changed(chance, text):
        lines = text.splitlines(True)
        if lines:
            change(chance, lines, chance.randrange(len(lines)))
        return "".join(lines)
    return changed


def delete_line(chance, lines, at):
    del lines[at]


def repeat_line(chance, lines, at):
    lines.insert(chance.randrange(len(lines) + 1), lines[at])


def shift_line(chance, lines, at):
    lines[at] = " " * chance.randrange(7) + lines[at].lstrip(" ")


def tab_line(chance, lines, at):
    lines[at] = "\t" + lines[at]


def comment_line(chance, lines, at):
    lines.insert(at, chance.choice(["# a word\n", "\n", "#\n"]))


def change_digit(chance, text):
    places = [m.start() for m in re.finditer(r"\d", text)]
    at = chance.choice(places) if places else 0
    return text[:at] + str(chance.randrange(10)) + text[at + 1:]


def change_letter(chance, text):
    at = chance.randrange(len(text) + 1)
    kind = chance.randrange(3)
    letter = chr(chance.randrange(32, 127)) if chance.random() < 0.9 else chr(chance.choice([0, 9, 10, 133, 0x2028, 0xfeff]))
    return text[:at] + (letter if kind else "") + text[at + (kind != 1):]


def cut(chance, text):
    return text[:chance.randrange(len(text) + 1)]


CHANGES = [swap_value] * 3 + [change_letter] * 3 + [change_digit] * 4 + [cut] + [
    by_line(change) for change in (delete_line, repeat_line, shift_line, tab_line, comment_line, comment_line, comment_line)]


def run_tool(folder, *command):
    """Exit code and lines of stderr; a daemon that runs on has started well."""
    environment = dict(os.environ, SSM_MODEL_PATH=str(MODELS))
    try:
        done = subprocess.run(command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=20)
    except subprocess.TimeoutExpired:
        return 0, []
    return done.returncode, done.stderr.decode(errors="replace").splitlines()


def compare(folder, text):
    """What is wrong with the two tools' answers, or None; and whether they refused."""
    (folder / "c.yaml").write_bytes(text.encode(errors="surrogatepass"))
    code, said = run_tool(folder, BUILD / "ssm", "check", "c.yaml")
    start, told = run_tool(folder, BUILD / "ssmd", "--config", "c.yaml")
    if code == 0:
        return (None if start == 0 or start in SURROUNDINGS else f"check 0, start {start}: {told}"), False
    if start != code:
        return f"check {code}, start {start}: {said} {told}", True
    places = [line for line in told if line.startswith("ssmd: c.yaml:")]
    if not places or not {line.removeprefix("ssmd: ") for line in places} <= set(said):
        return f"check says {said}, start {told}", True
    lines = text.count("\n") + text.count("\x85") + text.count("\u2028") + text.count("\r") + 1
    for line in said:
        place = re.match(r"c\.yaml:(\d+):(\d+): .", line)
        if not place and not re.match(r"\d+ more", line) or place and not 1 <= int(place[1]) <= lines + 1:
            return f"no place in: {line}", True
    return (None if said else "refused without a word"), True


def check_and_start_agree():
    chance = random.Random(SEED)
    refused, wrong = 0, []
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        script.write_sound(str(folder / "x.wav"), bytes(2 * 1600))
        for text in BASES:
            assert compare(folder, text) == (None, False), compare(folder, text)
        for number in range(MUTATIONS):
            text = chance.choice(BASES)
            for _ in range(chance.choice([1, 1, 1, 2, 3])):
                text = chance.choice(CHANGES)(chance, text)
            trouble, no = compare(folder, text)
            refused += no
            if trouble:
                wrong.append(trouble)
                print(f"mutation {number} of seed {SEED}: {trouble[:600]}\n{text[:1500]!r}")
    print(f"{MUTATIONS} mutations: {refused} refused by both, {MUTATIONS - refused - len(wrong)} taken by both, {len(wrong)} wrong")
    assert not wrong and refused > MUTATIONS // 4, (len(wrong), refused)


if __name__ == "__main__":
    sys.exit(script.run(check_and_start_agree))
