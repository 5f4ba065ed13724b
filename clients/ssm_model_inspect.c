/* SPDX-License-Identifier: MIT */
#include <stdio.h>
#include <stdlib.h>

#include "clients/json.h"
#include "clients/verb.h"
#include "model/ssm.h"

static double hops_per_second(const struct ssm_info *info)
{
    return (double)info->rate / info->hop;
}

static void print_channels(const struct ssm_engine *engine)
{
    const struct ssm_info *info = ssm_describe(engine);
    struct ssm_channel channel;
    printf("  channels     %d", info->channels);
    for (int i = 0; ssm_describe_channel(engine, i, &channel) && *channel.field; i++) {
        printf("%s%s%s%s%s", i ? ", " : ": ", channel.field, *channel.unit ? " (" : "", channel.unit, *channel.unit ? ")" : "");
    }
    printf("\n");
    if (info->vocabulary) {
        printf("  vocabulary   %d tokens\n", info->vocabulary);
    }
}

static void print_labels(const struct ssm_engine *engine)
{
    struct ssm_label label;
    for (int i = 0; ssm_describe_label(engine, i, &label); i++) {
        if (i == 0) {
            printf("\n  label%-20s MID            on  off  min_s  hold_s%s\n", "",
                   ssm_describe(engine)->exclusive ? "  (they exclude each other)" : "");
        }
        printf("  %-24s %-12s %4.2f %4.2f %6.3g %7.3g\n", label.name, label.mid, label.on, label.off, label.min_s,
               label.hold_s);
    }
}

static void print_text(const char *path, const struct ssm_engine *engine)
{
    const struct ssm_info *info = ssm_describe(engine);
    struct ssm_layer_info layer;
    printf("%s, version %s, for the task \"%s\"\n", info->name, info->version, info->task);
    printf("  file         %s\n", path);
    printf("  digest       %s (xxh3)\n", info->digest);
    printf("  licence      %s\n", info->licence);
    printf("  trained      %s\n", info->trained);
    printf("  rate         %d Hz\n", info->rate);
    print_channels(engine);
    printf("  hop          %d samples in, %d values out, every %.3g ms\n", info->hop, info->outputs,
           1e3 / hops_per_second(info));
    printf("  latency      %.3g ms (%d samples: output lag %d and one hop)\n", 1e3 * info->latency / info->rate,
           info->latency, info->delay);
    printf("  parameters   %ld\n", info->parameters);
    printf("  cost         %.4g M multiply-adds a hop, %.4g M a second\n", info->macs_per_hop / 1e6,
           info->macs_per_hop * hops_per_second(info) / 1e6);
    printf("  state        %.1f KiB a stream\n\n", (double)info->state_bytes / 1024);
    printf("  layer        name                           in    out   parameters  MACs a hop  state bytes\n");
    for (int i = 0; ssm_describe_layer(engine, i, &layer); i++) {
        printf("  %-12s %-26s %6d %6d %12ld %11.0f %12zu\n", layer.type, layer.name ? layer.name : "", layer.in, layer.out,
               layer.parameters, layer.macs_per_hop, layer.state_bytes);
    }
    print_labels(engine);
}

static void print_layers_json(struct json *json, const struct ssm_engine *engine)
{
    struct ssm_layer_info layer;
    json_open(json, "layers", '[');
    for (int i = 0; ssm_describe_layer(engine, i, &layer); i++) {
        json_open(json, NULL, '{');
        json_text(json, "type", layer.type);
        json_text(json, "name", layer.name ? layer.name : "");
        json_whole(json, "in", layer.in);
        json_whole(json, "out", layer.out);
        json_whole(json, "parameters", layer.parameters);
        json_number(json, "macs_per_hop", layer.macs_per_hop);
        json_whole(json, "state_bytes", (long long)layer.state_bytes);
        json_close(json, '}');
    }
    json_close(json, ']');
}

static void print_names_json(struct json *json, const struct ssm_engine *engine)
{
    struct ssm_channel channel;
    struct ssm_label label;
    json_open(json, "channels", '[');
    for (int i = 0; ssm_describe_channel(engine, i, &channel); i++) {
        json_open(json, NULL, '{');
        json_text(json, "field", channel.field);
        json_text(json, "unit", channel.unit);
        json_close(json, '}');
    }
    json_close(json, ']');
    json_open(json, "labels", '[');
    for (int i = 0; ssm_describe_label(engine, i, &label); i++) {
        json_open(json, NULL, '{');
        json_text(json, "name", label.name);
        json_text(json, "mid", label.mid);
        json_number(json, "on", (double)label.on);
        json_number(json, "off", (double)label.off);
        json_number(json, "min_s", (double)label.min_s);
        json_number(json, "hold_s", (double)label.hold_s);
        json_close(json, '}');
    }
    json_close(json, ']');
}

static void print_json(const char *path, const struct ssm_engine *engine)
{
    const struct ssm_info *info = ssm_describe(engine);
    struct json json = {.file = stdout};
    json_open(&json, NULL, '{');
    json_text(&json, "name", info->name);
    json_text(&json, "version", info->version);
    json_text(&json, "task", info->task);
    json_text(&json, "path", path);
    json_text(&json, "digest", info->digest);
    json_text(&json, "licence", info->licence);
    json_text(&json, "trained", info->trained);
    json_whole(&json, "rate", info->rate);
    json_whole(&json, "hop", info->hop);
    json_whole(&json, "inputs", info->inputs);
    json_whole(&json, "outputs", info->outputs);
    json_whole(&json, "vocabulary", info->vocabulary);
    json_flag(&json, "exclusive", info->exclusive);
    json_whole(&json, "delay", info->delay);
    json_whole(&json, "latency", info->latency);
    json_number(&json, "latency_ms", 1e3 * info->latency / info->rate);
    json_whole(&json, "parameters", info->parameters);
    json_number(&json, "macs_per_hop", info->macs_per_hop);
    json_number(&json, "macs_per_second", info->macs_per_hop * hops_per_second(info));
    json_whole(&json, "state_bytes", (long long)info->state_bytes);
    print_names_json(&json, engine);
    print_layers_json(&json, engine);
    json_close(&json, '}');
    putchar('\n');
}

static int run_inspect(char **arguments, int n)
{
    (void)n;
    char path[2048];
    struct ssm_error err = {0};
    struct ssm_options options = {.device = "cpu"};
    if (ssm_model_find(arguments[0], path, sizeof path, &err) != 0) {
        return verb_fail(err.code, "%s", err.text);
    }
    struct ssm_engine *engine = ssm_open(path, &options, &err);
    if (engine == NULL) {
        return verb_fail(err.code, "%s", err.text);
    }
    (verb_json ? print_json : print_text)(path, engine);
    ssm_close(engine);
    return 0;
}

const struct verb ssm_model_inspect = {
    .name = "model inspect",
    .arguments = "MODEL",
    .summary = "what is in a model: layers, rate, latency, cost",
    .details = "Show a model's task, sample rate, hop, latency, parameters, cost and licence, and its layers. MODEL is a name\n"
               "from \"ssm models\" or a .safetensors file. The whole file is read and checked, so this also answers whether\n"
               "a file is sound.",
    .examples = "  ssm model inspect denoise-16k\n"
                "  ssm model inspect ./mine.safetensors --json",
    .least = 1,
    .most = 1,
    .run = run_inspect,
};
