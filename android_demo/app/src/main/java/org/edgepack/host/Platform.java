package org.edgepack.host;

import java.io.File;
import java.util.Map;

/** What the host needs of the system that it runs on. Called on the host's thread. */
public interface Platform {
    /** Give an event to the page; dropped where there is none. */
    void receive(String event);

    /** Let the person choose files, then call `Host.chosen` with the id. */
    void choose(String id);

    /** Let the person choose a place for a copy of a file, then call `Host.saved` with the id. */
    void save(String id, File file, String name);

    /** `{name, cores, memory}`. */
    Map<String, Object> about();

    /** `{battery, charging, thermal, memory_free}`, as the event `device` has them. */
    Map<String, Object> device();

    long freeBytes(File folder);

    /** What a training does, for a notification: `{adapter, step, steps, seconds_left, waiting}`;
     *  null when none runs any more. */
    void training(Map<String, Object> state);
}
