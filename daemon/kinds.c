/* SPDX-License-Identifier: MIT */
#include "daemon/source.h"

#include "daemon/card.h"
#include "daemon/sink.h"

/* A row a kind, at the place of its name in config/config.h. */
static const struct source_ops *const sources[] = {
    [SOURCE_FILE] = &source_file, [SOURCE_AUDIO] = &source_audio, [SOURCE_PCM] = &source_pcm, [SOURCE_SENSOR] = &source_sensor};
static const struct sink_ops *const sinks[] = {
    [SINK_PUBLISH] = &sink_publish, [SINK_AUDIO] = &sink_audio, [SINK_FILE] = &sink_file, [SINK_JSONL] = &sink_jsonl};

const struct source_ops *source_find(enum source_type type)
{
    return sources[type];
}

enum condition source_condition(const struct source *source, int i)
{
    return atomic_load(&source->lost) ? CONDITION_LOST : card_channel_condition(source->card, i);
}

const struct sink_ops *sink_find(enum sink_type type)
{
    return sinks[type];
}
