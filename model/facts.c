/* SPDX-License-Identifier: MIT */
#include "model/facts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dsp/text.h"
#include "model/refuse.h"

enum { CHANNELS_MAX = 64, VOCABULARY_MAX = 1 << 20 };

/* Nothing of a model's file may command a terminal, or end a line of labels. */
static void copy_text(struct spec config, const char *key, char *text, size_t size)
{
    const char *value = spec_text(config, key);
    size_t cut = value ? strlen(value) : 0;
    for (cut = cut < size ? cut : size - 1; cut > 0 && (value[cut] & 0xc0) == 0x80; cut--) { /* not within a character */
    }
    snprintf(text, size, "%.*s", (int)cut, value ? value : "");
    for (size_t n; *text; text += n > 0 ? n : 1) {
        n = text_control(text, strlen(text));
        memset(text, ' ', n);
    }
}

static int read_task(struct ssm_info *info, struct spec config, struct ssm_error *err)
{
    static const char *const tasks[] = {"backbone", "denoise", "tag", "regress", "tokens", NULL};
    int task = 0;
    if (spec_word(config, "task", tasks, &task, err)) {
        return -1;
    }
    snprintf(info->task, sizeof info->task, "%s", tasks[task]);
    return 0;
}

static int read_numbers(struct ssm_info *info, struct spec config, struct ssm_error *err)
{
    int format = SPEC_REQUIRED;
    info->rate = info->hop = SPEC_REQUIRED;
    info->channels = 1;
    if (spec_int(config, "format", 1, 1, &format, err) || spec_int(config, "rate", 1, 10000000, &info->rate, err) ||
        spec_int(config, "hop", 1, 1 << 15, &info->hop, err) ||
        spec_int(config, "channels", 1, CHANNELS_MAX, &info->channels, err) ||
        spec_int(config, "vocabulary", 0, VOCABULARY_MAX, &info->vocabulary, err) ||
        spec_bool(config, "exclusive", &info->exclusive, err)) {
        return -1;
    }
    info->inputs = info->hop * info->channels;
    return 0;
}

/* The i-th string of a list with one for each channel, if the list is there at all. */
static int read_name(struct spec config, const char *list, int channels, int i, char *text, size_t size, struct ssm_error *err)
{
    int n = spec_count(config, list);
    const char *value = spec_text_at(config, list, i);
    if (n == 0) {
        return 0;
    }
    if (n != channels || !value || strlen(value) >= size || !text_is_plain(value)) {
        return refuse(err, 65, "%s: \"%s\" must be a list of %d strings of at most %zu letters, one a channel", config.where,
                      list, channels, size - 1);
    }
    strcpy(text, value);
    return 0;
}

static int read_channels(struct model *model, struct spec config, struct ssm_error *err)
{
    int n = model->info.channels;
    model->channels = calloc((size_t)n, sizeof *model->channels);
    if (!model->channels) {
        return refuse_memory(err);
    }
    for (int i = 0; i < n; i++) {
        struct ssm_channel *channel = &model->channels[i];
        if (read_name(config, "fields", n, i, channel->field, sizeof channel->field, err) ||
            read_name(config, "units", n, i, channel->unit, sizeof channel->unit, err)) {
            return -1;
        }
    }
    return 0;
}

int facts_read(struct model *model, struct spec config, struct ssm_error *err)
{
    struct ssm_info *info = &model->info;
    if (read_numbers(info, config, err) || read_task(info, config, err) || read_channels(model, config, err)) {
        return -1;
    }
    copy_text(config, "name", info->name, sizeof info->name);
    copy_text(config, "version", info->version, sizeof info->version);
    copy_text(config, "licence", info->licence, sizeof info->licence);
    copy_text(config, "trained", info->trained, sizeof info->trained);
    return 0;
}

static int read_span(struct spec spec, const char *key, double max, float *value, struct ssm_error *err)
{
    double number = (double)*value;
    int failed = spec_float(spec, key, 0, max, &number, err);
    *value = (float)number;
    return failed;
}

/* A label is a string, or an object with thresholds and times of its own. */
static int read_label(struct spec config, int i, struct ssm_label *label, struct ssm_error *err)
{
    struct spec spec = spec_at(config, "labels", i);
    const char *name = spec.json ? spec_text(spec, "name") : spec_text_at(config, "labels", i);
    *label = (struct ssm_label){.on = 0.5f, .off = 0.35f};
    if (!name || !*name || strlen(name) >= sizeof label->name || !text_is_plain(name)) {
        return refuse(err, 65, "%s: label %d needs a name of 1..%zu letters, none a control character", config.where, i,
                      sizeof label->name - 1);
    }
    strcpy(label->name, name);
    copy_text(spec, "mid", label->mid, sizeof label->mid);
    if (read_span(spec, "on", 1, &label->on, err)) {
        return -1;
    }
    label->off = label->off < label->on ? label->off : label->on;
    return read_span(spec, "off", (double)label->on, &label->off, err) || read_span(spec, "min_s", 3600, &label->min_s, err) ||
                   read_span(spec, "hold_s", 3600, &label->hold_s, err)
               ? -1
               : 0;
}

static int read_labels(struct model *model, struct spec config, struct ssm_error *err)
{
    int n = spec_count(config, "labels"), outputs = model->info.outputs;
    if (n != outputs && (n > 0 || !strcmp(model->info.task, "tag"))) {
        return refuse(err, 65, "%s: \"labels\" names %d outputs, but the last layer gives %d", config.where, n, outputs);
    }
    model->labels = calloc((size_t)n + 1, sizeof *model->labels);
    if (!model->labels) {
        return refuse_memory(err);
    }
    for (model->n_labels = 0; model->n_labels < n; model->n_labels++) {
        if (read_label(config, model->n_labels, &model->labels[model->n_labels], err)) {
            return -1;
        }
    }
    return 0;
}

/* What a task promises whoever runs the model. */
static int check_task(const struct ssm_info *info, const char *where, struct ssm_error *err)
{
    if (!strcmp(info->task, "denoise") && (info->channels != 1 || info->outputs != info->hop)) {
        return refuse(err, 65, "%s: a denoiser takes one channel and gives a hop of %d samples, but this one takes %d, and its "
                               "last layer gives %d values", where, info->hop, info->channels, info->outputs);
    }
    if (!strcmp(info->task, "tokens") && (info->inputs != 1 || info->vocabulary < 1 || info->outputs != info->vocabulary)) {
        return refuse(err, 65, "%s: a model of tokens takes one at a time and gives a score for each of its \"vocabulary\" (%d), "
                               "but this one takes %d and its last layer gives %d values", where, info->vocabulary, info->inputs,
                      info->outputs);
    }
    return 0;
}

/* The config's latency may be longer than the layers' own (a model trained to answer late), never shorter. */
int facts_finish(struct model *model, struct spec config, int outputs, struct ssm_error *err)
{
    struct ssm_info *info = &model->info;
    info->latency = info->delay + info->hop;
    if (spec_int(config, "latency", info->latency, 1 << 24, &info->latency, err)) {
        return -1;
    }
    info->outputs = outputs;
    info->delay = info->latency - info->hop;
    info->layers = model->n_layers;
    info->state_bytes = model->state * sizeof(float);
    return check_task(info, config.where, err) || read_labels(model, config, err) ? -1 : 0;
}
