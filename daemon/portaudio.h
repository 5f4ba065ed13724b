/* SPDX-License-Identifier: MIT */
#ifndef DAEMON_PORTAUDIO_H
#define DAEMON_PORTAUDIO_H

/* The process that has PortAudio inside, and one device open. Only daemon/portaudio.c includes portaudio.h. */

/* In main, before anything else: where this program was started as a helper (daemon/link.h) it becomes one and never returns. */
void portaudio_main(int argc, char **argv);

#endif
