package org.edgepack.host;

import java.io.File;
import java.util.ArrayList;
import java.util.Collections;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.Executor;

/** The workers by name, started as they are needed. All is called, and heard, on the host's thread. */
final class Workers {
    /** Hears the events of one's own request, or of requests of the page. */
    interface Listener {
        void event(Map<String, Object> event);
    }

    private final File programs, folder;
    private final Set<String> features;
    private final Executor host;
    private final Listener page;
    private final Map<String, Worker> running = new HashMap<String, Worker>();
    private final Map<String, Listener> own = new HashMap<String, Listener>();
    private int number;

    /** `programs`: the folder of native libraries. `folder`: where workers may write. */
    Workers(File programs, Set<String> features, File folder, Executor host, Listener page) {
        this.programs = programs;
        this.features = features;
        this.folder = folder;
        this.host = host;
        this.page = page;
    }

    /** Send a request of the page. */
    void post(String name, Map<String, Object> request) throws Failure {
        get(name).post(request);
    }

    /** Send a request of the host itself, and return its id. */
    String ask(String name, Map<String, Object> request, Listener listener) throws Failure {
        String id = "app:" + ++number;
        Worker worker = get(name);
        request.put("id", id);
        own.put(id, listener);
        worker.post(request);
        return id;
    }

    /** The file of a program for this processor. */
    File program(String name) throws Failure {
        return Cpu.program(programs, name, features);
    }

    /** Whether there is a program that this processor runs: true, or a text why not. */
    Object has(String name) {
        try {
            program(name);
            return true;
        } catch (Failure missing) {
            return missing.getMessage();
        }
    }

    /** Start a program with an argument instead of requests. `name` is for its threads. */
    Worker start(String program, List<String> arguments, Worker.Listener listener) throws Failure {
        List<String> command = new ArrayList<String>();
        command.add(program(program).getPath());
        command.addAll(arguments);
        return Worker.start(program, command, Files.folder(folder), listener);
    }

    /** End a worker that has nothing to do, so that its memory is free. */
    void rest(String name) {
        Worker worker = running.get(name);
        if (worker == null || worker.isBusy()) return;
        running.remove(name);
        worker.close();
    }

    /** End all at once. */
    void kill() {
        for (Worker worker : running.values()) worker.kill();
        running.clear();
    }

    private Worker get(String name) throws Failure {
        Worker worker = running.get(name);
        if (worker == null || worker.isGone()) {
            String program = name.equals(Trainings.SCRIBE) ? "chat" : name;
            worker = start(program, Collections.<String>emptyList(), new Relay(name));
            running.put(name, worker);
        }
        return worker;
    }

    private void heard(String from, Map<String, Object> event) {
        Object id = event.get("id");
        Listener listener = own.get(id);
        if (listener != null) {
            listener.event(event);
        } else if (id != null) {
            event.put("from", from);
            page.event(event);
        }
    }

    private void ended(String name, Worker worker, List<String> open, String lastWords) {
        if (running.get(name) == worker) running.remove(name);
        for (String id : open) {
            Failure failure = new Failure(
                    lastWords != null ? lastWords : "the program " + worker.name + " ended by itself",
                    "the phone may have too little memory for it");
            Map<String, Object> event = failure.event(id);
            event.put("ended", true);
            heard(name, event);
            own.remove(id);
        }
    }

    /** Brings what a worker's threads say to the host's thread, in order. */
    private final class Relay implements Worker.Listener {
        private final String name;

        Relay(String name) {
            this.name = name;
        }

        @Override
        public void event(Worker worker, final Map<String, Object> event) {
            host.execute(new Runnable() {
                @Override
                public void run() {
                    heard(name, event);
                }
            });
        }

        @Override
        public void ended(final Worker worker, final List<String> open, final String lastWords) {
            host.execute(new Runnable() {
                @Override
                public void run() {
                    Workers.this.ended(name, worker, open, lastWords);
                }
            });
        }
    }
}
