package org.edgepack.demo;

import android.os.Handler;
import android.os.Looper;
import java.io.File;
import java.util.Map;
import org.edgepack.host.Platform;

/** Android for the host. What needs the screen goes to the Activity, if there is one. */
final class AndroidPlatform implements Platform {
    private final App app;
    private final Device device;
    private final Handler main = new Handler(Looper.getMainLooper());
    /** Only on the main thread. */
    private MainActivity activity;
    private Map<String, Object> training;

    AndroidPlatform(App app) {
        this.app = app;
        this.device = new Device(app);
    }

    /** An Activity is there. */
    void enter(MainActivity now) {
        activity = now;
        watchDevice();
    }

    /** An Activity is gone; another one may be there already. */
    void leave(MainActivity old) {
        if (activity == old) activity = null;
        watchDevice();
    }

    @Override
    public void receive(final String event) {
        main.post(new Runnable() {
            @Override
            public void run() {
                if (activity != null) activity.bridge().receive(event);
            }
        });
    }

    @Override
    public void choose(final String id) {
        main.post(new Runnable() {
            @Override
            public void run() {
                if (activity != null) activity.choose(id);
                else app.host().chosen(id, null);
            }
        });
    }

    @Override
    public void save(final String id, final File file, final String name) {
        main.post(new Runnable() {
            @Override
            public void run() {
                if (activity != null) activity.save(id, file, name);
                else app.host().saved(id, "");
            }
        });
    }

    @Override
    public Map<String, Object> about() {
        return device.about();
    }

    @Override
    public Map<String, Object> device() {
        return device.now();
    }

    @Override
    public long freeBytes(File folder) {
        return folder.getUsableSpace();
    }

    @Override
    public void training(final Map<String, Object> state) {
        main.post(new Runnable() {
            @Override
            public void run() {
                boolean begins = training == null && state != null;
                training = state;
                if (begins && activity != null) activity.askForNotifications();
                TuneService.show(app, state);
                watchDevice();
            }
        });
    }

    /** Battery and heat matter while somebody looks, or something is trained. */
    private void watchDevice() {
        main.removeCallbacks(look);
        if (activity != null || training != null) main.post(look);
    }

    private final Runnable look = new Runnable() {
        @Override
        public void run() {
            if (device.hasChanged() && app.host() != null) app.host().deviceChanged();
            main.postDelayed(this, Device.EVERY);
        }
    };
}
