package org.edgepack.demo;

import android.app.Application;
import android.content.Context;
import java.io.File;
import org.edgepack.host.Cpu;
import org.edgepack.host.Failure;
import org.edgepack.host.Host;

/** The process: it has the host, which outlives the Activity. */
public final class App extends Application {
    private Host host;
    private AndroidPlatform platform;
    private Failure failure;

    static App of(Context context) {
        return (App) context.getApplicationContext();
    }

    @Override
    public void onCreate() {
        super.onCreate();
        platform = new AndroidPlatform(this);
        try {
            host = new Host(new File(getApplicationInfo().nativeLibraryDir),
                    Cpu.features(new File("/proc/cpuinfo")), getFilesDir(), platform);
        } catch (Failure full) {
            failure = full;
        }
    }

    /** Null where the storage cannot be written; `failure` then says so. */
    Host host() {
        return host;
    }

    AndroidPlatform platform() {
        return platform;
    }

    Failure failure() {
        return failure;
    }
}
