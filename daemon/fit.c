/* SPDX-License-Identifier: MIT */
#include "daemon/fit.h"

#include <stdio.h>
#include <string.h>

#include "daemon/labels.h"
#include "daemon/sink.h"
#include "dsp/sound_file.h"
#include "model/refuse.h"

/* The i-th of the parts that commas separate; false past the last. */
static bool part_of(const char *list, int i, char *part, size_t size)
{
    for (; i > 0 && *list; i--) {
        list += strcspn(list, ",");
        list += *list == ',';
    }
    snprintf(part, size, "%.*s", (int)strcspn(list, ","), list);
    return *list != '\0';
}

static int count_parts(const char *list)
{
    int n = list[0] != '\0';
    for (; *list; list++) {
        n += *list == ',';
    }
    return n;
}

static int fit_units(const struct config_source *source, const struct ssm_engine *engine, struct ssm_error *err)
{
    struct ssm_channel channel;
    char unit[sizeof channel.unit];
    for (int i = 0; source->units[0] && ssm_describe_channel(engine, i, &channel); i++) {
        part_of(source->units, i, unit, sizeof unit);
        if (channel.unit[0] && strcmp(unit, channel.unit) != 0) {
            return refuse(err, 78, "the model %s takes its channel %d in %s, and the source gives \"%s\"",
                          ssm_describe(engine)->name, i, channel.unit, unit);
        }
    }
    return 0;
}

/* A reading has one value a name. */
static int fit_names(const struct config_source *source, struct ssm_error *err)
{
    char field[64], other[64];
    for (int i = 0; part_of(source->fields, i, field, sizeof field); i++) {
        for (int k = 0; k < i; k++) {
            part_of(source->fields, k, other, sizeof other);
            if (strcmp(field, other) == 0) {
                return refuse(err, 78, "the fields %.200s name %s twice, as channels %d and %d", source->fields, field,
                              k, i);
            }
        }
    }
    return 0;
}

/* Another order of the model's own names is a mistake; names of one's own are not. */
static int fit_order(const struct config_source *source, const struct ssm_engine *engine, struct ssm_error *err)
{
    struct ssm_channel channel, other;
    char field[sizeof channel.field];
    for (int i = 0; ssm_describe_channel(engine, i, &channel); i++) {
        part_of(source->fields, i, field, sizeof field);
        for (int k = 0; strcmp(field, channel.field) != 0 && ssm_describe_channel(engine, k, &other); k++) {
            if (strcmp(field, other.field) == 0) {
                return refuse(err, 78, "the model %s takes %s as its channel %d, not %d", ssm_describe(engine)->name,
                              field, k, i);
            }
        }
    }
    return 0;
}

static int fit_sensor(const struct config_source *source, const struct ssm_engine *engine, struct ssm_error *err)
{
    const struct ssm_info *model = ssm_describe(engine);
    char own[LABELS_FIELDS_MAX];
    if (!source->fields[0]) {
        return labels_fields(engine, own) ? fit_units(source, engine, err)
                                          : refuse(err, 78,
                                                   "the model %s doesn't name its %d channels; add fields: [...] to "
                                                   "the source",
                                                   model->name, model->channels);
    }
    if (count_parts(source->fields) != model->channels) {
        return refuse(err, 78, "the fields %.200s are not %d, as many as the model %s takes", source->fields,
                      model->channels, model->name);
    }
    bool fit =
        fit_names(source, err) == 0 && fit_order(source, engine, err) == 0 && fit_units(source, engine, err) == 0;
    return fit ? 0 : -1;
}

static int fit_sound(const struct ssm_info *model, struct ssm_error *err)
{
    return model->channels == 1 ? 0
                                : refuse(err, 78, "the model %s takes %d channels of a sensor, and the source is sound",
                                         model->name, model->channels);
}

static int fit_sinks(const struct config_pipeline *pipeline, const struct ssm_info *model, bool tags,
                     struct ssm_error *err)
{
    for (int i = 0; i < pipeline->n_sinks; i++) {
        const struct sink_ops *ops = sink_find(pipeline->sinks[i].type);
        if (!(ops->takes & (tags ? SINK_TAKES_SCORES : SINK_TAKES_SAMPLES))) {
            return refuse(err, 78, "a sink of type %s takes %s, and the model %s gives %s", ops->name,
                          tags ? "sound" : "tags", model->name, tags ? "tags" : "sound");
        }
    }
    return 0;
}

static int fit_all(const struct config_pipeline *pipeline, const struct ssm_engine *engine, struct ssm_error *err)
{
    const struct ssm_info *model = ssm_describe(engine);
    bool tags = strcmp(model->task, "tag") == 0, sensor = pipeline->source.type == SOURCE_SENSOR;
    if (!tags && (sensor || model->outputs != model->hop)) {
        return refuse(err, 78, "the model %s, for the task \"%s\", gives neither tags nor sound of sound", model->name,
                      model->task);
    }
    if (tags && (pipeline->strength < 100 || pipeline->bypass)) {
        return refuse(err, 78, "strength and bypass are for denoisers, and the model %s gives tags", model->name);
    }
    if ((sensor ? fit_sensor(&pipeline->source, engine, err) : fit_sound(model, err)) < 0) {
        return -1;
    }
    return fit_sinks(pipeline, model, tags, err);
}

int fit_pipeline(const struct config_pipeline *pipeline, const struct ssm_engine *engine, struct ssm_error *err)
{
    struct ssm_error why = {0};
    return fit_all(pipeline, engine, &why) == 0
               ? 0
               : refuse(err, why.code, "pipeline %s: %.400s", pipeline->name, why.text);
}

/* Each label stands in the same place. */
static bool same_labels(const struct ssm_engine *a, const struct ssm_engine *b)
{
    struct ssm_label one, other;
    int i = 0;
    while (ssm_describe_label(a, i, &one) && ssm_describe_label(b, i, &other) && strcmp(one.name, other.name) == 0) {
        i++;
    }
    return !ssm_describe_label(a, i, &one) && !ssm_describe_label(b, i, &other);
}

/* Each channel is the same, as far as the models tell. */
static bool same_channels(const struct ssm_engine *a, const struct ssm_engine *b)
{
    struct ssm_channel one, other;
    int i = 0;
    while (ssm_describe_channel(a, i, &one) && ssm_describe_channel(b, i, &other) && strcmp(one.field, other.field) == 0 &&
           strcmp(one.unit, other.unit) == 0) {
        i++;
    }
    return !ssm_describe_channel(a, i, &one) && !ssm_describe_channel(b, i, &other);
}

int fit_fallback(const struct config_pipeline *pipeline, const struct ssm_engine *engine,
                 const struct ssm_engine *smaller, struct ssm_error *err)
{
    const struct ssm_info *a = ssm_describe(engine), *b = ssm_describe(smaller);
    if (strcmp(a->digest, b->digest) == 0) {
        return refuse(err, 78, "pipeline %s: fallback is another model than model", pipeline->name);
    }
    const struct {
        const char *what;
        int its, wanted;
    } rows[] = {{"rate", b->rate, a->rate}, {"hop", b->hop, a->hop}, {"delay", b->delay, a->delay},
                {"inputs", b->inputs, a->inputs}, {"outputs", b->outputs, a->outputs}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        if (rows[i].its != rows[i].wanted) {
            return refuse(err, 78, "pipeline %s: the model %s can't stand in for %s: its %s is %d and not %d", pipeline->name,
                          b->name, a->name, rows[i].what, rows[i].its, rows[i].wanted);
        }
    }
    bool same = strcmp(a->task, b->task) == 0 && same_labels(engine, smaller) && same_channels(engine, smaller);
    return same ? 0
                : refuse(err, 78, "pipeline %s: the model %s can't stand in for %s: it needs the same task, labels and channels",
                         pipeline->name, b->name, a->name);
}

/* Streams that come whoever asks, at the pace of real time. */
static int live_streams(const struct config_source *source)
{
    bool asks = strncmp(source->path, "unix:", 5) == 0 || strncmp(source->path, "tcp://", 6) == 0;
    int channels = source->n_channels > 0 ? source->n_channels : 1;
    switch (source->type) {
    case SOURCE_FILE:
        return source->paced ? channels : 0;
    case SOURCE_AUDIO:
        return channels;
    case SOURCE_PCM:
        return source->paced && !asks ? source->pcm_channels : 0;
    case SOURCE_SENSOR:
        return source->transport == SENSOR_UDP || source->transport == SENSOR_SUB || source->transport == SENSOR_MQTT;
    }
    return 0;
}

int fit_capacity(const struct config *config, const struct config_pipeline *pipeline, int *before,
                 struct ssm_error *err)
{
    int told = config->capacity, n = live_streams(&pipeline->source);
    if (told > 0 && n > 0 && *before + n > told) {
        return refuse(err, 75,
                      "pipeline %s: over_capacity: capacity allows %d live streams, and there is no room for %d more",
                      pipeline->name, told, n);
    }
    *before += n;
    return 0;
}

int fit_file(const struct config_sink *sink, int rate, int channels, struct ssm_error *err)
{
    const struct sound_file_info info = {.rate = sink->rate > 0 ? sink->rate : rate, .channels = channels, .length = -1};
    struct sound_file_error bad;
    bool fits = sink->type != SINK_FILE || info.rate <= 0 || sound_file_fits(sink->path, &info, &bad);
    return fits ? 0 : refuse(err, bad.code, "%s", bad.text);
}

int fit_blame(const struct config_place *at, struct ssm_error *err)
{
    char text[sizeof err->text];
    memcpy(text, err->text, sizeof text);
    snprintf(err->text, sizeof err->text, "%s%.*s", at->text, (int)(sizeof text - sizeof at->text), text);
    return -1;
}
