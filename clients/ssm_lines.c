/* SPDX-License-Identifier: MIT */

/* Lines that a model of bytes did not expect, nor the stream itself.
 *
 * The model reads every byte, newlines too, as one endless stream; after each it gives logits of the next. The surprise of a
 * byte is -log2 of the probability it had, once the model and what the stream has shown so far (clients/recall.h) are mixed. A
 * line's score is the highest mean surprise of WINDOW bytes in a row, because one strange word must not be diluted by the rest
 * of a long line. It is odd above a threshold, if it stands out from the last RECENT lines' scores, too: while a stream is new,
 * or where lines always say something new, few do. */

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>
#include <unistd.h>

#include "clients/json.h"
#include "clients/recall.h"
#include "clients/verb.h"
#include "dsp/text.h"
#include "model/ssm.h"

enum { BYTES = 256, BLOCK = 2048, WINDOW = 8, LONGEST = 8192, RECENT = 128, FEW = 16 };

static const char *model = "log-lines", *device = "cpu";
static double above = 4;
static const double APART = 1.5; /* bits */
static int threads = 1;
static bool all, alone;

struct line {
    char text[LONGEST]; /* its beginning, without the newline */
    size_t size;        /* ... of that                        */
    unsigned long long number, bytes;
    double last[WINDOW]; /* surprise of the last bytes, bits   */
    double sum, recent;  /* of the line, of `last`             */
    double score;
};

struct reader {
    struct ssm_engine *engine;
    ssm_stream stream;
    float *in, *out;      /* (BLOCK), (BLOCK, BYTES)                           */
    float expected[BYTES]; /* logits of the next byte                           */
    bool begun;           /* there are any                                     */
    struct recall *recall; /* NULL: the model alone                             */
    struct line line;
    double scores[RECENT]; /* of the last lines                                 */
    unsigned long long odd;
    double bits;          /* surprise of everything                            */
    unsigned long long bytes;
};

static double surprise(const float *logits, unsigned char byte)
{
    double top = logits[0], sum = 0;
    for (int i = 1; i < BYTES; i++) {
        top = logits[i] > top ? logits[i] : top;
    }
    for (int i = 0; i < BYTES; i++) {
        sum += exp(logits[i] - top);
    }
    return (log(sum) + top - logits[byte]) / M_LN2;
}

static void add_byte(struct line *line, unsigned char byte, double bits)
{
    double *slot = &line->last[line->bytes++ % WINDOW];
    line->recent += bits - *slot;
    *slot = bits;
    line->sum += bits;
    double mean = line->recent / WINDOW;
    line->score = mean > line->score ? mean : line->score;
    if (byte != '\n' && line->size < LONGEST) {
        line->text[line->size++] = (char)byte;
    }
}

/* A log holds what strangers send: nothing of it may command the terminal. */
static void print_text(const struct line *line)
{
    for (size_t i = 0, n; i < line->size; i += n > 0 ? n : 1) {
        n = text_printable(line->text + i, line->size - i);
        if (n > 0) {
            fwrite(line->text + i, 1, n, stdout);
        } else {
            printf("\\x%02x", (unsigned char)line->text[i]);
        }
    }
    putchar('\n');
}

static void print_json(const struct line *line, bool odd)
{
    struct json json = {.file = stdout};
    json_open(&json, NULL, '{');
    json_whole(&json, "line", (long long)line->number);
    json_number(&json, "score", line->score);
    json_number(&json, "bits_per_byte", line->sum / (double)line->bytes);
    json_flag(&json, "odd", odd);
    json_text_n(&json, "text", line->text, line->size);
    json_close(&json, '}');
    putchar('\n');
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* What a score has to be above: `above`, and as far from the middle of the last scores as APART, or twice as far as a tenth of
 * them is. Infinite until there are a FEW. */
static double limit_of(const struct reader *reader)
{
    size_t n = reader->line.number < RECENT ? (size_t)reader->line.number : RECENT;
    if (n < FEW) {
        return INFINITY;
    }
    double sorted[RECENT];
    memcpy(sorted, reader->scores, n * sizeof *sorted);
    qsort(sorted, n, sizeof *sorted, by_size);
    double middle = sorted[n / 2];
    return fmax(above, middle + fmax(APART, 2 * (sorted[n * 9 / 10] - middle)));
}

static void end_line(struct reader *reader)
{
    struct line *line = &reader->line;
    bool odd = line->score > limit_of(reader);
    if (reader->recall) {
        recall_learn(reader->recall, odd);
    }
    reader->scores[line->number++ % RECENT] = line->score;
    reader->odd += odd;
    if (odd || all) {
        if (verb_json) {
            print_json(line, odd);
        } else {
            printf("%c%6.2f  ", odd ? '!' : ' ', line->score);
            print_text(line);
        }
    }
    reader->bits += line->sum;
    reader->bytes += line->bytes;
    *line = (struct line){.number = line->number};
}

/* n <= BLOCK bytes: what each cost, and what to expect after the last. */
static int take_bytes(struct reader *reader, const unsigned char *bytes, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        reader->in[i] = bytes[i];
    }
    int status = ssm_scan(reader->engine, reader->stream, reader->in, reader->out, NULL, n, NULL);
    if (status != SSM_OK) {
        return verb_fail(EX_SOFTWARE, "the model failed: status %d", status);
    }
    for (size_t i = 0; i < n; i++) {
        const float *expected = i > 0 ? reader->out + (i - 1) * BYTES : reader->expected;
        double bits = reader->begun ? surprise(expected, bytes[i]) : 0;
        add_byte(&reader->line, bytes[i], reader->recall ? recall_take(reader->recall, bytes[i], bits) : bits);
        reader->begun = true;
        if (bytes[i] == '\n') {
            end_line(reader);
        }
    }
    memcpy(reader->expected, reader->out + (n - 1) * BYTES, sizeof reader->expected);
    fflush(stdout);
    return ferror(stdout) ? verb_fail(EX_IOERR, "can't write: %s", strerror(errno)) : 0;
}

/* To the end of the file; a line is judged as soon as its newline is here. */
static int read_lines(struct reader *reader, int file, const char *path)
{
    unsigned char bytes[BLOCK];
    int status = 0;
    ssize_t n = 1;
    while (status == 0 && n != 0) {
        n = read(file, bytes, sizeof bytes);
        if (n > 0) {
            status = take_bytes(reader, bytes, (size_t)n);
        } else if (n < 0 && errno != EINTR) {
            status = verb_fail(EX_NOINPUT, "%s: %s", path, strerror(errno));
        }
    }
    if (reader->line.bytes > 0) {
        end_line(reader);
    }
    return status;
}

static int open_reader(struct reader *reader)
{
    struct ssm_error err = {0};
    struct ssm_options options = {.device = device, .streams = 1, .threads = threads};
    reader->engine = ssm_open(model, &options, &err);
    if (reader->engine == NULL) {
        return verb_fail(err.code, "%s", err.text);
    }
    const struct ssm_info *info = ssm_describe(reader->engine);
    if (info->vocabulary != BYTES || info->outputs != BYTES) {
        return verb_fail(EX_USAGE, "%s is not a model of bytes: its task is %s, its vocabulary %d", info->name, info->task,
                         info->vocabulary);
    }
    reader->in = malloc(BLOCK * sizeof *reader->in);
    reader->out = malloc((size_t)BLOCK * BYTES * sizeof *reader->out);
    reader->recall = alone ? NULL : recall_create();
    if (reader->in == NULL || reader->out == NULL || (reader->recall == NULL && !alone)) {
        return verb_fail(EX_OSERR, "out of memory");
    }
    return ssm_stream_open(reader->engine, &reader->stream);
}

static int judge(struct reader *reader, const char *path)
{
    bool standard = strcmp(path, "-") == 0;
    int file = standard ? STDIN_FILENO : open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) {
        return verb_fail(EX_NOINPUT, "%s: %s", path, strerror(errno));
    }
    int status = read_lines(reader, file, path);
    if (!standard) {
        close(file);
    }
    if (status == 0) {
        verb_note("%llu lines, %llu odd, %.3f bits a byte", reader->line.number, reader->odd,
                  reader->bytes ? reader->bits / (double)reader->bytes : 0.0);
    }
    return status;
}

static int run_lines(char **arguments, int n)
{
    struct reader *reader = calloc(1, sizeof *reader);
    if (reader == NULL) {
        return verb_fail(EX_OSERR, "out of memory");
    }
    int status = open_reader(reader);
    status = status != 0 ? status : judge(reader, n > 0 ? arguments[0] : "-");
    ssm_close(reader->engine);
    recall_destroy(reader->recall);
    free(reader->in);
    free(reader->out);
    free(reader);
    return status;
}

static const struct verb_option options[] = {
    {"above", "BITS", OPTION_REAL, &above, 0, 1000, "a line is odd if its score is above this (4)"},
    {"alone", NULL, OPTION_FLAG, &alone, 0, 0, "by the model alone: the stream itself teaches nothing but its state"},
    {"all", NULL, OPTION_FLAG, &all, 0, 0, "print every line with its score, '!' in front of the odd ones"},
    {"model", "M", OPTION_TEXT, &model, 0, 0, "a model of bytes: a name from \"ssm models\" or a .safetensors file (log-lines)"},
    {"device", "D", OPTION_TEXT, &device, 0, 0, "auto, cpu, cuda or cuda:1 (cpu)"},
    {"threads", "N", OPTION_NUMBER, &threads, 1, 1024, "cores to use (1); two take two thirds of the time while both are\nfree, and longer than one beside other work, since they go in step"},
    {0},
};

const struct verb ssm_lines = {
    .name = "lines",
    .arguments = "[FILE]",
    .summary = "flag the odd lines of a log, live",
    .details =
        "Read FILE, or standard input, byte by byte into a model of bytes, and print the lines it did not expect, each behind\n"
        "its score: the highest mean surprise of eight bytes in a row, in bits a byte. There is no list of patterns and no\n"
        "tokeniser; what is usual is what the model was trained on, and what the stream itself has shown since: names and messages\n"
        "that come again are usual after a few lines. A line is odd if its score is above BITS and stands out from those of the last\n"
        "128 lines. It is judged when its newline arrives; what is kept of a stream is 8 MB, however long it runs. A core reads some\n"
        "50 kB a second, 700 lines of 70 bytes.",
    .examples = "  tail -f /var/log/syslog | ssm lines\n"
                "  journalctl -f -o short-iso | ssm lines --json\n"
                "  ssm lines --all --json old.log | jq .score",
    .options = options,
    .least = 0,
    .most = 1,
    .run = run_lines,
};
