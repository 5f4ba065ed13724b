/* SPDX-License-Identifier: MIT */
#include "config/config.h"
#include "config/keys.h"

static void print_text(FILE *file, const char *text)
{
    fputc('"', file);
    for (; *text; text++) {
        if (*text == '"' || *text == '\\') {
            fputc('\\', file);
        }
        fputc(*text, file);
    }
    fputc('"', file);
}

static void print_words(FILE *file, const char *const *words)
{
    for (int i = 0; words[i]; i++) {
        fputs(i > 0 ? ", " : "", file);
        print_text(file, words[i]);
    }
}

static void print_map(FILE *file, const struct keys *keys, int type);

/* A map with a type is one of as many maps. */
static void print_maps(FILE *file, const struct keys *keys)
{
    if (!keys->types) {
        print_map(file, keys, -1);
        return;
    }
    fprintf(file, "\"oneOf\": [");
    for (int type = 0; keys->types[type]; type++) {
        fprintf(file, "%s{", type > 0 ? ", " : "");
        print_map(file, keys, type);
        fprintf(file, "}");
    }
    fprintf(file, "]");
}

static void print_string(FILE *file, const struct key *key)
{
    fprintf(file, "\"type\": \"string\", \"maxLength\": %zu, \"pattern\": ", key->size - 1);
    print_text(file, key->pattern);
}

static void print_kind(FILE *file, const struct key *key)
{
    switch (key->kind) {
    case KEY_TEXT:
        print_string(file, key);
        break;
    case KEY_TEXTS:
        fprintf(file, "\"oneOf\": [{");
        print_string(file, key);
        fprintf(file, "}, {\"type\": \"array\", \"minItems\": %.0f, \"maxItems\": %.0f, \"uniqueItems\": true, \"items\": {",
                key->least, key->most);
        print_string(file, key);
        fprintf(file, "}}]");
        break;
    case KEY_BOOL:
        fprintf(file, "\"type\": \"boolean\"");
        break;
    case KEY_INT:
        fprintf(file, "\"type\": \"integer\", \"minimum\": %.0f, \"maximum\": %.0f", key->least, key->most);
        break;
    case KEY_REAL:
        fprintf(file, "\"type\": \"number\", \"minimum\": %g, \"maximum\": %g", key->least, key->most);
        break;
    case KEY_SECONDS:
        fprintf(file, "\"type\": \"string\", \"pattern\": \"^[0-9]+(\\\\.[0-9]+)?(us|ms|s|min|h)$\"");
        break;
    case KEY_WORD:
        fprintf(file, "\"enum\": [");
        print_words(file, key->words);
        fprintf(file, "]");
        break;
    case KEY_INTS:
        fprintf(file,
                "\"type\": \"array\", \"minItems\": 1, \"maxItems\": %zu, \"uniqueItems\": true, "
                "\"items\": {\"type\": \"integer\", \"minimum\": %.0f, \"maximum\": %.0f}",
                key->size / sizeof(int), key->least, key->most);
        break;
    case KEY_MAP:
        print_maps(file, key->items);
        break;
    case KEY_LIST:
        fprintf(file, "\"type\": \"array\", \"minItems\": %.0f, \"maxItems\": %.0f, \"items\": {", key->least,
                key->most);
        print_maps(file, key->items);
        fprintf(file, "}");
        break;
    case KEY_NAMED:
        fprintf(
            file,
            "\"type\": \"object\", \"minProperties\": %.0f, \"maxProperties\": %.0f, \"propertyNames\": {\"pattern\": ",
            key->least, key->most);
        print_text(file, key->pattern);
        fprintf(file, "}, \"additionalProperties\": {");
        print_maps(file, key->items);
        fprintf(file, "}");
        break;
    }
}

static void print_key(FILE *file, const struct keys *keys, int type, const struct key *key)
{
    fputs("\n", file);
    print_text(file, key->name);
    fprintf(file, ": {\"description\": ");
    print_text(file, key->about);
    fprintf(file, ", ");
    if (type >= 0 && key->words == keys->types) {
        fprintf(file, "\"const\": ");
        print_text(file, keys->types[type]);
    } else {
        print_kind(file, key);
    }
    if (key->standard) {
        bool quoted = key->kind == KEY_TEXT || key->kind == KEY_TEXTS || key->kind == KEY_SECONDS || key->kind == KEY_WORD;
        fprintf(file, quoted ? ", \"default\": \"%s\"" : ", \"default\": %s", key->standard);
    }
    fprintf(file, "}");
}

static void print_map(FILE *file, const struct keys *keys, int type)
{
    const char *between = "";
    fprintf(file, "\"type\": \"object\", \"additionalProperties\": false, \"required\": [");
    for (int i = 0; i < keys->n; i++) {
        if (keys->at[i].required && key_has_type(&keys->at[i], type)) {
            fputs(between, file);
            print_text(file, keys->at[i].name);
            between = ", ";
        }
    }
    fprintf(file, "], \"properties\": {");
    between = "";
    for (int i = 0; i < keys->n; i++) {
        if (key_has_type(&keys->at[i], type)) {
            fputs(between, file);
            print_key(file, keys, type, &keys->at[i]);
            between = ",";
        }
    }
    fprintf(file, "}");
}

void config_schema(FILE *file)
{
    fprintf(file, "{\"$schema\": \"http://json-schema.org/draft-07/schema#\",\n\"title\": \"ssmd configuration\",\n");
    print_maps(file, &config_keys);
    fprintf(file, "}\n");
}
