#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What is there is replaced when everything runs, and never by two at once."""

import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time

import script
from script import SSM, SSMD

MODEL = "tests/data/tiny-denoise.safetensors"
RATE = 16000


def configure(folder, *sinks, name="c", source="in.wav", more=""):
    path = f"{folder}/{name}.yaml"
    with open(path, "w") as file:
        file.write(f"version: 1\ndevice: cpu\npipelines:\n  p:\n    source: {{type: file, path: {folder}/{source}{more}}}\n"
                   f"    model: {MODEL}\n    sinks: [{', '.join(f'{{type: file, path: {sink}}}' for sink in sinks)}]\n")
    return path


def run(path):
    done = subprocess.run([SSMD, "--config", path], capture_output=True, text=True, timeout=60)
    return done.returncode, done.stderr


def names(folder):
    return sorted(os.listdir(folder))


def whole(path):
    """Its samples, as the tool reads them."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([SSM, "denoise", "--model", MODEL, path, f"{folder}/x.wav"], check=True, capture_output=True)
        return (os.path.getsize(f"{folder}/x.wav") - 44) // 2


def a_start_that_is_refused_leaves_every_file_as_it_was():
    with tempfile.TemporaryDirectory() as folder:
        script.write_sound(f"{folder}/in.wav", random.Random(1).randbytes(2 * RATE))
        script.write_sound(f"{folder}/music.wav", random.Random(1).randbytes(2 * 44100), rate=44100)
        for name in ("keep.wav", "keep.opus"):
            with open(f"{folder}/{name}", "w") as file:
                file.write("what was there")
        for source, sinks, code, words in (
                ("music.wav", [f"{folder}/keep.opus"], 73, "Opus takes 8000"),
                ("in.wav", [f"{folder}/keep.wav", f"{folder}/new.wav", "/none/of/these/y.wav"], 73, "/none/of/these/y.wav"),
                ("music.wav", [f"{folder}/keep.wav", f"{folder}/new.opus"], 73, "Opus takes 8000")):
            path = configure(folder, *sinks, source=source)
            before = names(folder)
            status, said = run(path)
            assert status == code and words in said, (status, said)
            assert names(folder) == before, (before, names(folder))
            for name in ("keep.wav", "keep.opus"):
                assert open(f"{folder}/{name}").read() == "what was there", name
        assert run(configure(folder, f"{folder}/keep.wav"))[0] == 0
        assert whole(f"{folder}/keep.wav") == RATE and f"{folder}/keep.wav.recording" not in names(folder)


def what_was_cut_off_outlives_a_refused_start_too():
    with tempfile.TemporaryDirectory() as folder:
        script.write_sound(f"{folder}/in.wav", random.Random(1).randbytes(20 * RATE))
        process = script.start(configure(folder, f"{folder}/out.wav"))
        time.sleep(2)
        process.kill()
        process.communicate()
        status, said = run(configure(folder, f"{folder}/out.wav", "/none/of/these/y.wav"))
        assert status == 73 and "cut off" not in said and f"out.wav.recording" in names(folder), (status, said)
        status, said = run(configure(folder, f"{folder}/out.wav", more=", paced: false"))
        assert status == 0 and "was cut off; what there is of it is" in said, (status, said)
        kept, = (name for name in names(folder) if name.startswith("out.2"))
        assert whole(f"{folder}/{kept}") >= RATE // 2 and whole(f"{folder}/out.wav") == 10 * RATE
        assert not [name for name in names(folder) if name.endswith(".recording")], names(folder)


def what_was_cut_off_behind_a_link_leaves_the_link():
    with tempfile.TemporaryDirectory() as folder:
        script.write_sound(f"{folder}/in.wav", random.Random(1).randbytes(20 * RATE))
        os.mkdir(f"{folder}/large")
        os.symlink("large/out.wav", f"{folder}/link.wav")
        process = script.start(configure(folder, f"{folder}/link.wav"))
        time.sleep(2)
        process.kill()
        process.communicate()
        status, said = run(configure(folder, f"{folder}/link.wav", more=", paced: false"))
        assert status == 0 and "link.wav was cut off; what there is of it is" in said, (status, said)
        assert os.readlink(f"{folder}/link.wav") == "large/out.wav" and whole(f"{folder}/link.wav") == 10 * RATE, names(folder)
        kept, = (name for name in names(f"{folder}/large") if name.startswith("out.2"))  # the link had this name, and nothing led to large/
        assert whole(f"{folder}/large/{kept}") >= RATE // 2, kept


def a_pipe_is_no_recording():
    """Who reads it could keep every other recording waiting; a reload waited for one, and ssmd could not be ended."""
    with tempfile.TemporaryDirectory() as folder:
        script.write_sound(f"{folder}/in.wav", random.Random(1).randbytes(2 * RATE))
        for name in ("pipe.wav", "pipe.flac"):
            os.mkfifo(f"{folder}/{name}")
        path = configure(folder, f"{folder}/out.wav", more=", loop: true")
        process = script.start(path)
        for name in ("pipe.wav", "pipe.flac"):
            status, said = run(configure(folder, f"{folder}/{name}", name="other"))
            assert status == 73 and f"{name}: is a pipe" in said, (status, said)
            checked = subprocess.run([SSM, "check", f"{folder}/other.yaml"], capture_output=True, text=True)
            assert checked.returncode == 73 and f"{name}: is a pipe" in checked.stderr, checked
        configure(folder, f"{folder}/out.wav", f"{folder}/pipe.flac", more=", loop: true")
        process.send_signal(signal.SIGHUP)
        line = process.stderr.readline()
        assert "not reloaded, what ran goes on" in line and "is a pipe" in line, line
        process.terminate()
        assert process.wait(timeout=20) == 0, process.stderr.read()
        process.stderr.close()


def a_file_that_another_daemon_writes_is_refused():
    with tempfile.TemporaryDirectory() as folder:
        script.write_sound(f"{folder}/in.wav", random.Random(1).randbytes(2 * RATE))
        os.symlink(f"{folder}/both.wav", f"{folder}/same.wav")
        path = configure(folder, f"{folder}/both.wav", more=", loop: true")
        first = script.start(path)
        for name in ("both", "same"):
            status, said = run(configure(folder, f"{folder}/{name}.wav", name="second"))
            assert status == 73 and f"{name}.wav: is being written by another ssmd" in said, (status, said)
        first.terminate()
        assert first.wait(timeout=60) == 0, first.stderr.read()
        first.stderr.close()
        status, said = run(configure(folder, f"{folder}/both.wav", name="second", more=", paced: false"))
        assert status == 0 and "cut off" not in said and whole(f"{folder}/both.wav") == RATE, (status, said)


def too_few_descriptors_are_told():
    """However many lack, and never by an end that libzmq or libuv makes."""
    with tempfile.TemporaryDirectory() as folder:
        script.write_sound(f"{folder}/in.wav", bytes(3200))
        path = configure(folder, f"{folder}/out.wav")
        with open(path, "a") as file:
            file.write(f"publish: tcp://127.0.0.1:{script.free_port()}\ncontrol: ipc://{folder}/control\nhttp: 127.0.0.1:{script.free_port()}\n")
        for words, least, enough in (([SSMD, "--config", path], 5, 44), ([SSM, "ctl", "snapshot", "--connect", f"ipc://{folder}/none", "--wait", "1"], 4, 24)):
            for most in (*range(least, enough), enough):
                command = ["bash", "-c", f'ulimit -n {most}; exec "$@"', "bash", *words]
                done = subprocess.run(command, capture_output=True, text=True, timeout=60)
                if done.returncode in (0, 69) and "open files" not in done.stderr:
                    break  # that is enough: it runs, or nobody answers
                assert done.returncode == 71 and "open files" in done.stderr.lower() and "curve" not in done.stderr, (most, done)
            assert most < enough, (most, done)


def a_reload_that_finds_too_few_descriptors_ends_nothing():
    with tempfile.TemporaryDirectory() as folder:
        script.write_sound(f"{folder}/in.wav", bytes(3200))
        path = configure(folder, f"{folder}/out.wav", more=", loop: true")
        process, more = script.start(path), script.free_port()
        with open(path, "a") as file:
            file.write(f"  q:\n    source: {{type: pcm, rate: 16000, path: 'pull:tcp://127.0.0.1:{more}'}}\n    model: {MODEL}\n"
                       f"    sinks: [{{type: file, path: {folder}/q.wav}}]\n")
        held, said, n = len(os.listdir(f"/proc/{process.pid}/fd")), "", 0
        while "not reloaded" in said or n == 0:
            resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (held + n, held + 100))
            process.send_signal(signal.SIGHUP)
            said = next((line for line in process.stderr if "reloaded" in line), "")
            assert "reloaded: pipelines" in said or ("not reloaded" in said and "open files" in said), (n, said, process.poll())
            n += 1
        process.kill()
        process.communicate()
        assert n > 5, n


def a_recording_that_was_deleted_is_told():
    with tempfile.TemporaryDirectory() as folder:
        script.write_sound(f"{folder}/in.wav", bytes(2 * RATE))
        for change, told in ((os.unlink, True), (lambda path: os.rename(path, f"{folder}/kept.wav"), False)):
            process = script.start(configure(folder, f"{folder}/out.wav", more=", loop: true"))
            change(f"{folder}/out.wav")
            process.send_signal(signal.SIGTERM)
            said = process.communicate(timeout=60)[1]
            assert process.returncode == 0 and ("out.wav: was deleted while it was written" in said) == told, said
        assert names(folder) == ["c.yaml", "in.wav", "kept.wav"], names(folder)


def help_that_nobody_gets_is_no_success():
    for words in [SSMD, "--help"], [SSMD, "--version"], [SSM, "--help"], [SSM, "schema"]:
        with open("/dev/full", "w") as full:
            done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True)
        assert done.returncode == 74 and "can't write the output: No space left" in done.stderr, (words, done)


def whatever_is_closed_a_recording_is_the_same():
    """Of standard input, output and error: no file gets their numbers."""
    with tempfile.TemporaryDirectory() as folder:
        script.write_sound(f"{folder}/in.wav", random.Random(1).randbytes(2 * RATE))
        path, wanted = configure(folder, f"{folder}/out.wav", more=", paced: false"), None
        for closed in ("", "<&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"):  # with all three libuv ended it
            done = subprocess.run(["bash", "-c", f'exec "$@" {closed}', "bash", SSMD, "--config", path], capture_output=True, text=True, timeout=60)
            with open(f"{folder}/out.wav", "rb") as file:
                got = file.read()
            wanted = wanted or got
            assert done.returncode == 0 and got == wanted, (closed, done)
        with open(path) as file:
            text = file.read().replace(f"type: file, path: {folder}/in.wav, paced: false", "type: pcm, path: '-', rate: 16000")
        with open(path, "w") as file:
            file.write(text)
        done = subprocess.run(["bash", "-c", 'exec "$@" <&-', "bash", SSMD, "--config", path], capture_output=True, text=True, timeout=60)
        assert done.returncode == 66 and "standard input is closed" in done.stderr, done


if __name__ == "__main__":
    sys.exit(script.run(a_start_that_is_refused_leaves_every_file_as_it_was, what_was_cut_off_outlives_a_refused_start_too,
                        what_was_cut_off_behind_a_link_leaves_the_link, a_pipe_is_no_recording, a_file_that_another_daemon_writes_is_refused,
                        too_few_descriptors_are_told, a_reload_that_finds_too_few_descriptors_ends_nothing,
                        a_recording_that_was_deleted_is_told, whatever_is_closed_a_recording_is_the_same,
                        help_that_nobody_gets_is_no_success))
