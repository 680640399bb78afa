package org.edgepack.host;

import java.io.BufferedReader;
import java.io.File;
import java.io.FileInputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;

/**
 * The app's host on a desktop, for tests: `Desktop PROGRAMS CPUINFO FILES`. A line of input is an
 * object with one key, see `act`; a line of output is an event, or `{"told": …}` of what Android
 * would show.
 */
public final class Desktop implements Platform {
    private final PrintStream out;
    private Host host;
    private List<Picked> choice;
    private String target;
    private Map<String, Object> device = Json.of("battery", 0.9, "charging", false,
            "thermal", "none");
    private long free = Long.MAX_VALUE;

    private Desktop() throws IOException {
        out = new PrintStream(System.out, true, "UTF-8");
    }

    public static void main(String[] arguments) throws Exception {
        Desktop desktop = new Desktop();
        desktop.host = new Host(new File(arguments[0]), Cpu.features(new File(arguments[1])),
                new File(arguments[2]), desktop);
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in, Worker.UTF_8));
        for (String line = in.readLine(); line != null; line = in.readLine()) {
            Map<String, Object> object = Json.parseObject(line);
            String what = object.keySet().iterator().next();
            desktop.act(what, object.get(what));
        }
        desktop.host.close();
    }

    private void act(String what, Object value) throws Exception {
        if (what.equals("post")) {
            host.post((String) value);
        } else if (what.equals("choose")) {
            choice = value == null ? null : picked((List<?>) value);
        } else if (what.equals("offer")) {
            host.offer(picked((List<?>) value));
        } else if (what.equals("target")) {
            target = (String) value;
        } else if (what.equals("device")) {
            device = Json.object(value);
            host.deviceChanged();
        } else if (what.equals("free")) {
            free = ((Number) value).longValue();
        } else if (what.equals("stop")) {
            host.stopTraining();
        } else if (what.equals("json")) {
            tell("json", value((String) value));
        } else {
            throw new IllegalArgumentException(what);
        }
    }

    /** A text that is JSON, read and written again; or the failure. */
    private static Object value(String text) {
        try {
            return Json.of("value", Json.write(Json.parse(text)));
        } catch (Failure failure) {
            return Json.of("failure", failure.getMessage());
        }
    }

    private static List<Picked> picked(List<?> paths) {
        List<Picked> found = new ArrayList<Picked>();
        for (Object path : paths) found.add(new OnDisk(new File((String) path)));
        return found;
    }

    private synchronized void tell(String key, Object value) {
        out.println(Json.write(Json.of("told", key, "value", value)));
    }

    @Override
    public synchronized void receive(String event) {
        out.println(event);
    }

    @Override
    public void choose(String id) {
        host.chosen(id, choice);
    }

    @Override
    public void save(String id, File file, String name) {
        try (InputStream in = new FileInputStream(file)) {
            tell("save", name);
            if (target != null) {
                Files.copy(in, new File(target), name, new Files.Watch() {
                    @Override
                    public void copied(long bytes) {}
                });
            }
            host.saved(id, target == null ? "" : null);
        } catch (IOException | Failure failure) {
            host.saved(id, failure.getMessage());
        }
    }

    @Override
    public Map<String, Object> about() {
        return Json.of("name", "desktop", "cores", Runtime.getRuntime().availableProcessors(),
                "memory", Runtime.getRuntime().maxMemory());
    }

    @Override
    public Map<String, Object> device() {
        return Json.of("battery", device.get("battery"), "charging", device.get("charging"),
                "thermal", device.get("thermal"), "memory_free", 0L);
    }

    @Override
    public long freeBytes(File folder) {
        return free;
    }

    @Override
    public void training(Map<String, Object> state) {
        tell("training", state);
    }

    private static final class OnDisk implements Picked {
        private final File file;

        OnDisk(File file) {
            this.file = file;
        }

        @Override
        public String name() {
            return file.getName();
        }

        @Override
        public long size() {
            return file.length();
        }

        @Override
        public InputStream open() throws IOException {
            return new FileInputStream(file);
        }
    }
}
