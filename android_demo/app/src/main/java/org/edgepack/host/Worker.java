package org.edgepack.host;

import java.io.BufferedReader;
import java.io.File;
import java.io.IOException;
import java.io.InputStream;
import java.io.InputStreamReader;
import java.io.OutputStream;
import java.nio.charset.Charset;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.LinkedBlockingQueue;

/** A program beside the app: requests go in as lines, events come out as lines. */
public final class Worker {
    static final Charset UTF_8 = Charset.forName("UTF-8");
    private static final Map<String, String> LAST = new LinkedHashMap<String, String>();

    static {
        String[] pairs = {
            "inspect", "inspected", "load", "loaded", "adapters", "adapters", "chat", "ended",
            "render", "rendered", "write", "written", "cancel", "done", "plan", "planned",
            "train", "ended", "gradient", "gradient", "bench", "ended",
        };
        for (int i = 0; i < pairs.length; i += 2) LAST.put(pairs[i], pairs[i + 1]);
    }

    /** Hears what a worker says. Called by the worker's own threads. */
    public interface Listener {
        void event(Worker worker, Map<String, Object> event);

        /** The process is gone. `open` are the ids of requests without their last event; `lastWords`
         *  is what it said it failed by, or null. */
        void ended(Worker worker, List<String> open, String lastWords);
    }

    public final String name;
    private final Process process;
    private final Listener listener;
    private final Map<String, String> open = new LinkedHashMap<String, String>();
    private final BlockingQueue<byte[]> lines = new LinkedBlockingQueue<byte[]>();
    private static final byte[] CLOSE = new byte[0];
    /** Bytes of a line that a program reads. */
    private static final int LONGEST = 4 << 20;
    /** By `open`. */
    private boolean isGone;

    private Worker(String name, Process process, Listener listener) {
        this.name = name;
        this.process = process;
        this.listener = listener;
    }

    /** Start a program in a folder that it may write to. */
    public static Worker start(String name, List<String> command, File folder, Listener listener)
            throws Failure {
        ProcessBuilder builder = new ProcessBuilder(command).directory(folder);
        builder.environment().put("TMPDIR", folder.getPath());
        final Worker worker;
        try {
            worker = new Worker(name, builder.start(), listener);
        } catch (IOException refused) {
            throw new Failure("the program " + name + " cannot be started on this device");
        }
        worker.thread("in", new Runnable() {
            @Override
            public void run() {
                worker.writeLines();
            }
        });
        worker.thread("out", new Runnable() {
            @Override
            public void run() {
                worker.readLines();
            }
        });
        worker.thread("log", new Runnable() {
            @Override
            public void run() {
                worker.dropLog();
            }
        });
        return worker;
    }

    private void thread(String part, Runnable run) {
        Thread thread = new Thread(run, name + "-" + part);
        thread.setDaemon(true);
        thread.start();
    }

    /** Send a request, with its `id` and `do`. Never waits for the worker. */
    public void post(Map<String, Object> request) throws Failure {
        String id = Json.text(request, "id");
        String what = Json.text(request, "do");
        byte[] line = (Json.write(request) + "\n").getBytes(UTF_8);
        if (line.length > LONGEST) {  // the program could not tell whose line it was
            throw new Failure("this is more text than a request can have", "send less text");
        }
        synchronized (open) {
            if (isGone) throw new Failure("the program " + name + " ended by itself");
            if (open.containsKey(id)) throw new Failure("the request is being worked on");
            open.put(id, what);
        }
        lines.add(line);
    }

    /** Note a request that went in by the program's arguments. */
    void expect(String id, String what) {
        synchronized (open) {
            open.put(id, what);
        }
    }

    /** End its input; it ends when it has done what it was asked. */
    public void close() {
        lines.add(CLOSE);
    }

    /** End it at once. */
    public void kill() {
        process.destroy();
    }

    /** Whether it has ended, and hears no more. */
    boolean isGone() {
        synchronized (open) {
            return isGone;
        }
    }

    /** Whether any request is open. */
    public boolean isBusy() {
        synchronized (open) {
            return !open.isEmpty();
        }
    }

    private void writeLines() {
        try (OutputStream out = process.getOutputStream()) {
            for (byte[] line = lines.take(); line != CLOSE; line = lines.take()) {
                out.write(line);
                out.flush();
            }
        } catch (IOException gone) {
            // the reader hears of it
        } catch (InterruptedException stopped) {
            Thread.currentThread().interrupt();
        }
    }

    private void readLines() {
        String lastWords = null;
        try (BufferedReader in =
                new BufferedReader(new InputStreamReader(process.getInputStream(), UTF_8))) {
            for (String line = in.readLine(); line != null; line = in.readLine()) {
                Map<String, Object> event;
                try {
                    event = Json.parseObject(line);
                } catch (Failure noEvent) {
                    continue;
                }
                String id = Json.textOrNull(event, "id");
                if (id == null && "failed".equals(event.get("event"))) {
                    lastWords = Json.textOrNull(event, "message");
                }
                settle(id, Json.textOrNull(event, "event"));
                listener.event(this, event);
            }
        } catch (IOException gone) {
            // it ends the same way
        }
        List<String> left;
        synchronized (open) {
            isGone = true;
            left = new ArrayList<String>(open.keySet());
            open.clear();
        }
        lines.add(CLOSE);
        waitFor();
        listener.ended(this, left, lastWords);
    }

    private void settle(String id, String event) {
        synchronized (open) {
            String what = open.get(id);
            if (what != null && ("failed".equals(event) || LAST.get(what).equals(event))) {
                open.remove(id);
            }
        }
    }

    private void waitFor() {
        try {
            process.waitFor();
        } catch (InterruptedException stopped) {
            Thread.currentThread().interrupt();
        }
    }

    /** What llama.cpp logs is not kept: it may have words of a conversation. */
    private void dropLog() {
        byte[] block = new byte[8192];
        try (InputStream log = process.getErrorStream()) {
            while (log.read(block) >= 0) continue;
        } catch (IOException gone) {
            // nothing to read
        }
    }
}
