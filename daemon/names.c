/* SPDX-License-Identifier: MIT */
#include "daemon/names.h"

#include <dirent.h>
#include <errno.h>
#include <grp.h>
#include <libudev.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

#include "model/refuse.h"

enum { PATHS = 1300 };

/* ---- Matching. ---- */

/* 4 the id, 3 the name, 2 the name without its API, 1 a part of it, 0 not. */
static int match(const struct sound_device *device, const char *wanted)
{
    const char *bare = strchr(device->name, ':') + 1;
    return device->id[0] && strcmp(device->id, wanted) == 0 ? 4
           : strcmp(device->name, wanted) == 0              ? 3
           : strcmp(bare, wanted) == 0                      ? 2
           : strcasestr(device->name, wanted)               ? 1
                                                            : 0;
}

static int find_default(const struct sound_device *list, int n, bool capture, struct ssm_error *err)
{
    for (int i = 0; i < n; i++) {
        if (capture ? list[i].default_input : list[i].default_output) {
            return i;
        }
    }
    return refuse(err, 69, "there is no audio device for %s: ssm devices lists what there is", capture ? "capture" : "playback");
}

int names_find(const struct sound_device *list, int n, const char *wanted, bool capture, struct ssm_error *err)
{
    int best = -1, best_match = 0, same = 0;
    if (strcmp(wanted, "default") == 0 || wanted[0] == '\0') {
        return find_default(list, n, capture, err);
    }
    for (int i = 0; i < n; i++) {
        int how = (capture ? list[i].inputs : list[i].outputs) > 0 ? match(&list[i], wanted) : 0;
        same = how > best_match ? 1 : same + (how == best_match && how > 0);
        best = how > best_match ? i : best;
        best_match = how > best_match ? how : best_match;
    }
    const char *kind = capture ? "capture" : "playback";
    if (best < 0) {
        return refuse(err, 69, "no audio device for %s is called %s: ssm devices lists what there is", kind, wanted);
    }
    return same == 1 ? best : refuse(err, 69, "%d audio devices for %s match %s: give the name that ssm devices prints", same,
                                     kind, wanted);
}

/* ---- Names that stay. ---- */

/* The card's udev device, its parents' properties with it. */
static const char *property(struct udev_device *card, const char *key)
{
    const char *value = udev_device_get_property_value(card, key);
    return value && value[0] ? value : NULL;
}

/* A USB device's attribute as the kernel has it, where udev's daemon doesn't run. */
static const char *usb_attribute(struct udev_device *card, const char *key)
{
    struct udev_device *usb = udev_device_get_parent_with_subsystem_devtype(card, "usb", "usb_device");
    const char *value = usb ? udev_device_get_sysattr_value(usb, key) : NULL;
    return value && value[0] ? value : NULL;
}

static void name_card(struct udev_device *card, char id[96])
{
    const char *vendor = usb_attribute(card, "idVendor"), *product = usb_attribute(card, "idProduct");
    const char *serial = usb_attribute(card, "serial"), *path = property(card, "ID_PATH");
    const char *alsa = udev_device_get_sysattr_value(card, "id");
    if (vendor && product && serial) {
        snprintf(id, 96, "usb:%s:%s:%s", vendor, product, serial);
    } else if (path) {
        snprintf(id, 96, "path:%s", path);
    } else if (alsa) {
        snprintf(id, 96, "card:%s", alsa);
    }
}

static void find_id(struct sound_device *device, int card, int number)
{
    char sound[32], id[96] = "";
    snprintf(sound, sizeof sound, "card%d", card);
    struct udev *udev = udev_new();
    struct udev_device *found = udev ? udev_device_new_from_subsystem_sysname(udev, "sound", sound) : NULL;
    if (found) {
        name_card(found, id);
        udev_device_unref(found);
    }
    if (udev) {
        udev_unref(udev);
    }
    if (id[0]) {
        snprintf(device->id, sizeof device->id, "%s,%d", id, number);
    }
}

void names_fill(struct sound_device *device, const char *api, const char *name)
{
    int card, number, end = 0;
    const char *numbers = strcmp(api, "ALSA") == 0 ? strstr(name, " (hw:") : NULL;
    bool hardware = numbers && sscanf(numbers, " (hw:%d,%d)%n", &card, &number, &end) == 2 && end > 0 && numbers[end] == '\0';
    int length = hardware ? (int)(numbers - name) : (int)strlen(name);
    while (length > 0 && strchr(" :-", name[length - 1])) { /* "USB Audio: -" */
        length--;
    }
    snprintf(device->name, sizeof device->name, "%.31s:%.*s", api, length, name);
    device->id[0] = '\0';
    if (hardware) {
        find_id(device, card, number);
    }
}

/* ---- Obstacles. ---- */

static bool read_line(const char *path, char *line, size_t size)
{
    FILE *file = fopen(path, "re");
    bool ok = file && fgets(line, (int)size, file);
    if (file) {
        fclose(file);
    }
    line[ok ? strcspn(line, "\n") : 0] = '\0';
    return ok;
}

/* The process in a substream's status, as "owner_pid   : 1234" tells it; 0: nobody. */
static int find_owner(const char *path)
{
    char line[128];
    int pid = 0;
    FILE *file = fopen(path, "re");
    while (file && pid == 0 && fgets(line, sizeof line, file)) {
        pid = sscanf(line, "owner_pid : %d", &pid) == 1 ? pid : 0;
    }
    if (file) {
        fclose(file);
    }
    return pid;
}

static bool starts(const char *text, const char *with)
{
    return strncmp(text, with, strlen(with)) == 0;
}

/* Calls back with each entry of a folder that begins so, until one call gives true. */
static bool each(const char *folder, const char *with, bool (*call)(const char *path, void *arg), void *arg)
{
    DIR *entries = opendir(folder);
    bool done = false;
    for (struct dirent *entry; entries && !done && (entry = readdir(entries));) {
        char path[PATHS];
        snprintf(path, sizeof path, "%.1000s/%s", folder, entry->d_name);
        done = starts(entry->d_name, with) && call(path, arg);
    }
    if (entries) {
        closedir(entries);
    }
    return done;
}

struct obstacle {
    char *text;
    size_t size;
    const char *proc;
};

static bool is_held(const char *substream, void *arg)
{
    struct obstacle *obstacle = arg;
    char path[PATHS], name[64];
    snprintf(path, sizeof path, "%.1200s/status", substream);
    int pid = find_owner(path);
    if (pid <= 0 || pid == getpid()) {
        return false;
    }
    snprintf(path, sizeof path, "%s/%d/comm", obstacle->proc, pid);
    if (!read_line(path, name, sizeof name)) {
        snprintf(name, sizeof name, "a process");
    }
    snprintf(obstacle->text, obstacle->size, "%s (%d) holds %s", name, pid, strstr(substream, "asound/"));
    return true;
}
static bool has_holder(const char *pcm, void *arg)
{
    return each(pcm, "sub", is_held, arg);
}
static bool card_has_holder(const char *card, void *arg)
{
    return each(card, "pcm", has_holder, arg);
}

static bool is_forbidden(const char *path, void *arg)
{
    struct obstacle *obstacle = arg;
    struct stat stat_;
    if (access(path, R_OK | W_OK) == 0 || errno != EACCES || stat(path, &stat_) != 0) {
        return false;
    }
    const struct group *group = getgrgid(stat_.st_gid);
    snprintf(obstacle->text, obstacle->size, "%s may not be opened: is this user in the group %s?", path,
             group ? group->gr_name : "that owns it");
    return true;
}

void names_obstacle(char *text, size_t size, const char *proc, const char *dev)
{
    struct obstacle obstacle = {text, size, proc};
    char folder[PATHS];
    text[0] = '\0';
    snprintf(folder, sizeof folder, "%s/snd", dev);
    if (!each(folder, "pcm", is_forbidden, &obstacle)) {
        snprintf(folder, sizeof folder, "%s/asound", proc);
        each(folder, "card", card_has_holder, &obstacle);
    }
}

/* ---- Hot-plug. ---- */

struct hotplug {
    struct udev *udev;
    struct udev_monitor *monitor;
};

struct hotplug *hotplug_open(void)
{
    struct hotplug *hotplug = calloc(1, sizeof *hotplug);
    if (!hotplug) {
        return NULL;
    }
    hotplug->udev = udev_new();
    hotplug->monitor = hotplug->udev ? udev_monitor_new_from_netlink(hotplug->udev, "udev") : NULL;
    bool ok = hotplug->monitor &&
              udev_monitor_filter_add_match_subsystem_devtype(hotplug->monitor, "sound", NULL) >= 0 &&
              udev_monitor_enable_receiving(hotplug->monitor) >= 0;
    if (!ok) {
        hotplug_close(hotplug);
        return NULL;
    }
    return hotplug;
}

void hotplug_close(struct hotplug *hotplug)
{
    if (hotplug) {
        if (hotplug->monitor) {
            udev_monitor_unref(hotplug->monitor);
        }
        if (hotplug->udev) {
            udev_unref(hotplug->udev);
        }
        free(hotplug);
    }
}

int hotplug_fd(const struct hotplug *hotplug)
{
    return udev_monitor_get_fd(hotplug->monitor);
}

/* A card's devices come before the "change" that says it is complete; each is worth a look. */
bool hotplug_seen(struct hotplug *hotplug)
{
    bool seen = false;
    for (struct udev_device *event; (event = udev_monitor_receive_device(hotplug->monitor));) {
        const char *action = udev_device_get_action(event);
        seen = seen || (action && strcmp(action, "remove") != 0);
        udev_device_unref(event);
    }
    return seen;
}
