/* SPDX-License-Identifier: MIT */
#ifndef DSP_SOUND_FILE_H
#define DSP_SOUND_FILE_H

/* Sound files, read and written as interleaved floats; the only file that knows libsndfile.
 *
 * Reads whatever libsndfile reads. Writes by the path's ending: .wav .flac .ogg (Vorbis) .opus .w64 .rf64. PCM keeps
 * its bits: reading and writing integers of the same size changes nothing. A sample here is one value per channel;
 * lengths and positions count these. One owner per file. Opening and committing may take long and allocate. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct sound_file;

struct sound_file_error {
    /* of sysexits: 65 not sound or damaged, 66 can't be read, 71 no memory or descriptor to be had, 73 can't be made, 74 input or
     * output failed */
    int code;
    char text[512]; /* one sentence that begins with the path */
};

struct sound_file_info {
    int rate, channels;
    int64_t length;  /* samples; reading: what the file says it holds, though it were cut short, or -1 when it doesn't say.
                        Writing: what is to come, -1 when not known */
    int format;      /* libsndfile's number for container and subtype. Writing: the source's, or 0 for 16 bit */
    char words[128]; /* reading: "WAV (Microsoft), Signed 24 bit PCM" */
    char note[160];  /* reading: what a header tells that isn't so, where all that is there is taken; "" = nothing */
};

/* Open for reading; "-" is standard input, which may be a pipe for a format that needs no seeking, as WAV. NULL with *err
 * filled in: not there, empty, not a sound file. A file of no samples opens. Where a header miscounts (info->note), or tells of
 * no samples as its writer never came back to it, all that is there is read; of standard input the latter is an error. */
struct sound_file *sound_file_open(const char *path, struct sound_file_info *info, struct sound_file_error *err);

/* Read up to n samples.
 *   samples  out  (n, channels)  NaN and inf become 0 and are counted
 * Gives how many; fewer than n at the end, or where the file is damaged: then *err is set (err->code is 0 otherwise)
 * and says at which sample. */
size_t sound_file_read(struct sound_file *file, float *samples, size_t n, struct sound_file_error *err);

/* Go to sample `position`; false where the file can't. */
bool sound_file_seek(struct sound_file *file, int64_t position);

/* Reading: values that were NaN or inf. Writing: values beyond full scale, clamped where the subtype is PCM, and NaN.
 */
uint64_t sound_file_bad(const struct sound_file *file);

/* Open for writing. The subtype is that of info->format where the new container holds it losslessly; else 16 bit, or 24
 * bit for FLAC of a float source. A .wav of unknown length, or of 2 GiB and more, is written as RF64, which becomes a
 * WAV again at the end if it stayed below 4 GiB. atomic: written beside the path and moved there by commit, so that
 * nobody sees half a file; what isn't committed is removed, and a file that is replaced leaves its owner and mode to it. Else written in place, for readers who follow a growing
 * file (a path that is no regular file always is). */
struct sound_file *sound_file_create(const char *path, const struct sound_file_info *info, bool atomic,
                                     struct sound_file_error *err);

/* The same in place, in two steps: all that can be refused is refused here, and a file that is there stays as it was until
 * sound_file_begin, or for good where that is never called. A regular file is locked (F_OFD_SETLK) against others who reserve
 * it, until it is closed. A pipe is refused. */
struct sound_file *sound_file_reserve(const char *path, const struct sound_file_info *info, struct sound_file_error *err);
/* What is there goes; from here on it can be written. False with *err set: afterwards only close. */
bool sound_file_begin(struct sound_file *file, struct sound_file_error *err);

/* Is there a container of the path's ending for this rate and these channels, and is the path no pipe? False with *err set. The path
 * isn't touched. */
bool sound_file_fits(const char *path, const struct sound_file_info *info, struct sound_file_error *err);
/* Has somebody reserved it? Who asks keeps nobody from it. */
bool sound_file_taken(const char *path);

/* Write n samples (n, channels). False with *err set when the disk is full or the like. */
bool sound_file_write(struct sound_file *file, const float *samples, size_t n, struct sound_file_error *err);

/* Writing in place: make what was written so far readable by others (the header says the length; FLAC and Ogg have
 * none). */
void sound_file_flush(struct sound_file *file);

/* Writing: the file is complete: header, disk, name. False with *err set. Afterwards only close. */
bool sound_file_commit(struct sound_file *file, struct sound_file_error *err);

/* Writing in place: has somebody deleted the file, so that it ends as it is closed? */
bool sound_file_deleted(const struct sound_file *file);

void sound_file_close(struct sound_file *file); /* NULL is fine */

#endif
